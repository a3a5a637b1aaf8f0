"""A description with tags.

answer: struct<caption: string, tags: list<string>, language: string>
"""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Tag = Annotated[str, Field(min_length=1, max_length=40)]


class Caption(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = "Describe what there is to see."
    example: ClassVar[Any] = {
        "caption": "A red bus waits at a stop in the rain.",
        "tags": ["bus", "rain"],
        "language": "en",
    }

    caption: str = Field(
        min_length=1,
        description="one or two plain sentences",
        json_schema_extra={"x-compare": {"by": "text", "at_least": 0.8}},
    )
    tags: list[Tag] = Field(max_length=20, description="things, places and actions, in lower case")
    language: str = Field(
        pattern="^[a-z]{2}$", description="of the caption, as ISO 639-1", json_schema_extra={"x-compare": "choice"}
    )
