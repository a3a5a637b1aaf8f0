"""The data behind a chart, or in a table: the names of the columns, and the rows.

answer: struct<title: string, unit: string, columns: list<string>, rows: list<struct<cells: list<string>>>>
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Cell = Annotated[str, Field(max_length=400)]


class ChartRow(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cells: list[Cell] = Field(
        max_length=64, description="one value for each column, as printed; empty if there is none"
    )


class Chart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = (
        "Read the data of this chart or table. Where a chart prints no numbers, read them from its axes."
    )
    example: ClassVar[Any] = {
        "title": "Sales",
        "unit": "million EUR",
        "columns": ["year", "north", "south"],
        "rows": [{"cells": ["2025", "4.1", "3.7"]}],
    }

    title: str | None = Field(
        None, max_length=400, description="as printed", json_schema_extra={"x-compare": {"by": "text", "at_least": 0.8}}
    )
    unit: str | None = Field(None, max_length=80, description="of the numbers")
    columns: list[Cell] = Field(max_length=64, description="their names, the labels of the rows first")
    rows: list[ChartRow] = Field(max_length=400, description="one for each row, or for each point on the axis")

    def violations(self) -> Iterator[str]:
        for number, row in enumerate(self.rows, 1):
            if len(row.cells) != len(self.columns):
                yield f"row {number} has {len(row.cells)} cells, and there are {len(self.columns)} columns"
