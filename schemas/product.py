"""What a shop needs to know of a product: its place in a taxonomy, its brand, and whether it is used.

answer: struct<category: string, brand: string, is_secondhand: bool>

Category, brand and is_secondhand are what MLPerf Inference asks about Shopify's product catalogue. `score` gives the
hierarchical F1 of the category.
"""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Product(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = "Catalogue this product by its picture."
    example: ClassVar[Any] = {
        "category": "Apparel & Accessories > Shoes > Sneakers",
        "brand": "Acme",
        "is_secondhand": False,
    }

    category: str = Field(
        min_length=1,
        max_length=300,
        description="from the general to the special, with > between the levels",
        json_schema_extra={"x-compare": "path"},
    )
    brand: str | None = Field(
        None,
        max_length=120,
        description="the maker's name, if it can be told",
        json_schema_extra={"x-compare": {"by": "text", "at_least": 0.9}},
    )
    is_secondhand: bool = Field(description="whether it was used before")
