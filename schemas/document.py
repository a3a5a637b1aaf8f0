"""The blocks of one page in reading order, with their text and their boxes in pixels of the original.

answer: struct<blocks: list<struct<kind: string, text: string, bbox_2d: list<int64>, image: int64>>>
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.boxes import Coordinate


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["title", "text", "list", "table", "figure", "caption", "formula", "header", "footer"] = Field(
        description="what the block is", json_schema_extra={"x-compare": "class"}
    )
    bbox_2d: Annotated[list[Coordinate], Field(min_length=4, max_length=4)] = Field(description="[x1, y1, x2, y2]")
    text: str = Field(
        description="as printed; a table as Markdown; empty for a figure",
        json_schema_extra={"x-compare": {"by": "text", "at_least": 0.9}},
    )
    image: int | None = Field(
        None, ge=1, le=999, description="which page, if there are several", json_schema_extra={"x-means": "image"}
    )


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = "Read this page: every block of it, in reading order."
    example: ClassVar[Any] = {"blocks": [{"kind": "title", "bbox_2d": [80, 60, 540, 110], "text": "Annual report"}]}

    blocks: list[Block] = Field(description="in reading order; empty for an empty page")
