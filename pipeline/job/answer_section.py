"""The keys of the section `answer` of a job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, model_validator

from pipeline.job.embedding_section import EmbeddingSection
from pipeline.job.key_types import Fraction, JobSection, PositiveInt, define_key
from pipeline.job.rerank_section import RerankSection

CHOICE = "{choice}"


def parse_choices(value: Any) -> Any:
    """Accept a list of labels in place of `{label: description}`."""
    if value is None:
        return None
    if not isinstance(value, list | dict) or not value:
        raise ValueError("write the choices as a list, or as {label: description}")
    labels = [str(label) if type(label) in (int, float) else label for label in value]
    for label in labels:
        if not isinstance(label, str):
            raise ValueError(f"{label} is no text: put it in quotes, as yes, no, on and off must be in YAML")
        if label != label.strip() or not label:
            raise ValueError(f"{label!r} is empty or begins or ends with white space")
    lower = [label.lower() for label in labels]
    if twice := next((label for label in lower if lower.count(label) > 1), None):
        raise ValueError(f"{twice!r} is there twice; labels must differ in more than upper and lower case")
    return dict(zip(labels, value.values() if isinstance(value, dict) else [None] * len(labels), strict=True))


Choices = Annotated[
    dict[str, str | None],
    BeforeValidator(parse_choices, json_schema_input_type=list[Any] | dict[str, str | None]),
]


class ThinkingSection(JobSection):
    max_tokens: PositiveInt = define_key("tokens that the model may think before its answer", 2048)


class AnswerSection(JobSection):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    schema_: str | None = define_key(
        "a name from schemas/, path.py:Model, or a .json JSON Schema; without it the answer is text",
        None,
        alias="schema",
    )
    max_new_tokens: PositiveInt = define_key("budget of an answer", 512)
    temperature: float = define_key("0 is greedy", 0.0, ge=0, le=5)
    top_p: float = define_key("sample from the likeliest tokens that hold this share", 1.0, gt=0, le=1)
    top_k: int = define_key("sample from so many likeliest tokens; 0: all", 0, ge=0)
    seed: int = define_key("a row's sampling depends on (seed, id, attempt) only", 0)
    guided: bool = define_key("with a schema: let the model write nothing but what fits it", True)
    retries: int = define_key("ask again, so often, when the answer does not validate", 0, ge=0, le=20)
    review_below: Fraction | None = define_key(
        "flag rows (`review`) in which the confidence of any value is less; calibrated, if the output has a score",
        None,
        affects_answers=False,
    )
    thinking: ThinkingSection | Literal[False] | None = define_key(
        "{max_tokens: ...} lets the model think first, false keeps it from it, where its chat template leaves the "
        "choice; default: as the template does by itself",
        None,
    )
    choices: Choices | None = define_key(
        "a list, or {label: description}: the answer is the likeliest of them, from one pass over the prompt and "
        "without writing; the columns `answer`, `confidence` and `probabilities` hold what came out",
        None,
    )
    multi: bool = define_key("with choices: ask of each by itself whether it applies, yes or no", False)
    choice_format: str | None = define_key(
        "the answer in which a choice is looked for, such as 'It is a {choice}.'; default: the choice alone. With "
        "multi: the question about one choice, which follows the prompt",
        None,
    )

    embedding: EmbeddingSection | None = define_key(
        "{from: language} or {from: vision}: the answer is a vector, in the column `embedding`",
        None,
    )

    rerank: RerankSection | None = define_key(
        "{query: ...}: the answer is the probability that the row fits the query, as Qwen3-VL-Reranker gives it", None
    )

    @property
    def is_written(self) -> bool:
        """Whether the model writes the answer. Otherwise it comes from a pass over the prompt."""
        return self.choices is None and not self.is_about_row

    @property
    def is_about_row(self) -> bool:
        """Whether the row itself is all that the model reads, so that no question is needed."""
        return self.embedding is not None or self.rerank is not None

    @model_validator(mode="after")
    def check_kind(self) -> AnswerSection:
        kinds = {"embedding": self.embedding, "rerank": self.rerank}
        others = {"schema": self.schema_, "choices": self.choices, "thinking": self.thinking or None}
        given = [name for name, value in {**kinds, **others}.items() if value is not None]
        if self.is_about_row and len(given) > 1:
            raise ValueError(f"`{given[0]}` and `{given[1]}` both say what an answer is; leave one of them out")
        return self

    @model_validator(mode="after")
    def check_choices(self) -> AnswerSection:
        if self.choices is None:
            if self.multi or self.choice_format is not None:
                raise ValueError("`multi` and `choice_format` are about `choices`, which are missing")
            return self
        if self.schema_ is not None:
            raise ValueError("`choices` and `schema` both say what an answer looks like; leave one of them out")
        if self.thinking:
            raise ValueError("with `choices` nothing is written, so the model cannot think; leave `thinking` out")
        if len(self.choices) < 2 and not self.multi:
            raise ValueError("`choices` names one, which is always the answer; name another, or set multi: true")
        if self.choice_format is not None and self.choice_format.count(CHOICE) != 1:
            raise ValueError(f"`choice_format` must have {CHOICE} once")
        return self
