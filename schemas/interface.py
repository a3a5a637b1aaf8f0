"""The elements of a screenshot that can be read or used. Stored are pixels of the original.

answer: struct<elements: list<struct<kind: string, label: string, bbox_2d: list<int64>, image: int64>>>
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.boxes import Coordinate


class Element(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["button", "link", "input", "checkbox", "menu", "tab", "icon", "image", "text"] = Field(
        description="what it is", json_schema_extra={"x-compare": "class"}
    )
    label: str = Field(
        max_length=200,
        description="its text, or what it does if it has none",
        json_schema_extra={"x-compare": {"by": "text", "at_least": 0.8}},
    )
    bbox_2d: Annotated[list[Coordinate], Field(min_length=4, max_length=4)] = Field(description="[x1, y1, x2, y2]")
    image: int | None = Field(
        None, ge=1, le=999, description="which screenshot, if there are several", json_schema_extra={"x-means": "image"}
    )


class Interface(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = "List every element of this screen that a person can use or read, with a tight box."
    example: ClassVar[Any] = {"elements": [{"kind": "button", "label": "Save", "bbox_2d": [820, 64, 900, 96]}]}

    elements: list[Element] = Field(description="from top to bottom, then from left to right")
