"""Objects with their centre points. The model answers in its own coordinates; stored are pixels of the original.

answer: struct<points: list<struct<point_2d: list<int64>, label: string, image: int64>>>
"""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.boxes import Coordinate


class Point(BaseModel):
    model_config = ConfigDict(extra="forbid")

    point_2d: Annotated[list[Coordinate], Field(min_length=2, max_length=2)] = Field(description="[x, y]")
    label: str = Field(min_length=1, max_length=80, description="what it is", json_schema_extra={"x-compare": "class"})
    image: int | None = Field(
        None, ge=1, le=999, description="which picture, if there are several", json_schema_extra={"x-means": "image"}
    )


class Points(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = "Point at the centre of every object."
    example: ClassVar[Any] = {"points": [{"point_2d": [250, 237], "label": "dog"}]}

    points: list[Point] = Field(description="one entry for each object; empty if there is none")
