"""The keys of `answer.embedding`: the answer is a vector."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, model_validator

from pipeline.job.key_types import JobSection, PositiveInt, define_key


class EmbeddingSection(JobSection):
    model_config = ConfigDict(populate_by_name=True)
    source: Literal["language", "vision"] = define_key(
        "language: from the last hidden states of the language model, which sees media, text and instruction; vision: "
        "from the features of the media alone, without loading the language model",
        alias="from",
    )
    pool: Literal["last", "mean"] | None = define_key(
        "the state of the last token, or the mean of all; default: last for language, mean for vision", None
    )
    dim: PositiveInt | None = define_key(
        "keep so many of the first numbers, for models that were trained for it (Matryoshka); default: all", None
    )
    normalize: bool = define_key("divide vectors by their length", True)
    dtype: Literal["float32", "float16"] = define_key("of the column `embedding`", "float32")
    instruction: str | None = define_key(
        "what the vectors are for, such as Retrieve images that show the same product; default: Represent the user's "
        "input",
        None,
    )

    @property
    def pooling(self) -> Literal["last", "mean"]:
        return self.pool or ("last" if self.source == "language" else "mean")

    @model_validator(mode="after")
    def check_source(self) -> EmbeddingSection:
        if self.source == "vision" and self.pool == "last":
            raise ValueError("`pool: last` is for language: the features of a picture have no last one")
        if self.source == "vision" and self.instruction is not None:
            raise ValueError("`from: vision` reads no text; leave `instruction` out")
        return self
