"""Objects with their bounding boxes. The model answers in its own coordinates; stored are pixels of the original.

answer: struct<boxes: list<struct<bbox_2d: list<int64>, label: string, image: int64>>>
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Coordinate = Annotated[int, Field(ge=0, le=99_999)]


class Box(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bbox_2d: Annotated[list[Coordinate], Field(min_length=4, max_length=4)] = Field(description="[x1, y1, x2, y2]")
    label: str = Field(min_length=1, max_length=80, description="what it is", json_schema_extra={"x-compare": "class"})
    image: int | None = Field(
        None, ge=1, le=999, description="which picture, if there are several", json_schema_extra={"x-means": "image"}
    )


class Boxes(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = "Find every object and draw a tight box around it."
    example: ClassVar[Any] = {"boxes": [{"bbox_2d": [120, 64, 380, 410], "label": "dog"}]}

    boxes: list[Box] = Field(description="one entry for each object; empty if there is none")

    def violations(self) -> Iterator[str]:
        for index, box in enumerate(self.boxes, 1):
            left, top, right, bottom = box.bbox_2d
            if left >= right or top >= bottom:
                yield f"box {index} ({box.label}) has its corners in the wrong order"
