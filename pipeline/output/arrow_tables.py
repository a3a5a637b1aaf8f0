"""Builds the two tables of a chunk: its answered rows and its dead letters.

Their columns follow from the job and the manifest, so a part without rows has the same columns as any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.context import RunContext
from pipeline.job.spec import Job
from pipeline.output.answer.choice_answer import build_probabilities_field
from pipeline.output.answer.confidence import build_confidence_field
from pipeline.output.answer.embedding_answer import build_embedding_field
from pipeline.types import Failure, Item, Outcome, Row

MEDIA_TYPE = pa.struct(
    [
        *(("kind", pa.string()), ("uri", pa.string())),
        *((name, pa.int32()) for name in ("width", "height", "model_width", "model_height", "frames")),
        ("times", pa.list_(pa.float64())),
    ]
)
COLUMN_DESCRIPTIONS = {  # of the columns that the manifest does not have
    "id": "the row's name: input.id, or a hash of what it asks",
    "text": "what the model wrote",
    "answer": "the same in the schema's types; boxes, points and times are those of the original file",
    "confidence": "how sure the model was of each value of the answer, 0 to 1; `score`: of an object with a place",
    "finish": "stop, or length if the token budget ended before the answer",
    "media": "what the model saw: sizes of the original and for the model, frames, times in seconds",
    "tokens": "vision tokens, all prompt tokens, output tokens",
    "attempts": "how often the row was tried, over all runs",
    "thinking": "what a thinking model thought",
    "logprob": "mean log-probability of the answer's tokens",
    "latency_s": "seconds from when the engine took the row until it had answered",
    "raw": "the model's own JSON, if geometry or repair changed it",
    "flags": "what was done to the answer: repaired, clamped, ...; shrunk: the server made its pictures smaller; "
    "truncated: a video's file ends early",
    "violations": "what the schema doubts about the answer, in sentences",
    "question": "hash of what the row asks",
    "model": "the weights",
    "fingerprint": "hash of everything in the job that changes an answer",
    "run": "the run that answered the row",
}
VERSIONS_COLUMN = "media_versions"  # only with input.version
PROBABILITIES_COLUMN = "probabilities"  # only with answer.choices
EMBEDDING_COLUMN = "embedding"  # only with answer.embedding
OPTIONAL_COLUMNS = {
    EMBEDDING_COLUMN: "the vector of the row",
    VERSIONS_COLUMN: "the version of each URI that the row looks at, as input.version says",
    PROBABILITIES_COLUMN: "how probable each choice is; with answer.multi each by itself, otherwise of all together",
}
VERSIONS_FIELD = pa.field(VERSIONS_COLUMN, pa.list_(pa.string()))
RESERVED_COLUMNS = (*COLUMN_DESCRIPTIONS, "stage", "kind", "message", "fp")
REQUIRED_COLUMNS = ("id", "question", "stage", "kind", "message")
COLUMN_TYPES = {
    **dict.fromkeys(RESERVED_COLUMNS, pa.string()),
    "media": pa.list_(MEDIA_TYPE),
    "tokens": pa.struct([(name, pa.int64()) for name in ("vision", "prompt", "output")]),
    "attempts": pa.int32(),
    **dict.fromkeys(("logprob", "latency_s"), pa.float64()),
    **dict.fromkeys(("flags", "violations"), pa.list_(pa.string())),
}
ROW_FIELDS = (
    "id",
    "question",
    "text",
    "answer",
    "confidence",
    "finish",
    "thinking",
    "logprob",
    "latency_s",
    "raw",
    "flags",
    "violations",
)
FAILURE_FIELDS = ("stage", "kind", "message", "text")


def build_data_schema(context: RunContext) -> pa.Schema:
    answer = [context.schema.answer_field, build_confidence_field(context.schema)] if context.schema else []
    if context.job.answer.choices:
        answer.append(build_probabilities_field(PROBABILITIES_COLUMN, context.job.answer))
    if context.job.answer.embedding:
        answer.append(build_embedding_field(EMBEDDING_COLUMN, context.job.answer.embedding, context.vector_width))
    _, _, _, _, *others = COLUMN_DESCRIPTIONS  # after id, text, answer and confidence
    versions = [] if context.job.input.version == "none" else [VERSIONS_FIELD]
    fields = [build_field("id"), *context.kept_schema, build_field("text"), *answer, *map(build_field, others)]
    return pa.schema([*fields, *versions])


def build_errors_schema(context: RunContext) -> pa.Schema:
    names = ("stage", "kind", "message", "attempts", "text", "question", "fingerprint", "run")
    return pa.schema([build_field("id"), *context.kept_schema, *map(build_field, names)])


def describe_column(name: str) -> str:
    """Empty for a kept column."""
    return {**COLUMN_DESCRIPTIONS, **OPTIONAL_COLUMNS}.get(name, "")


def list_reserved_columns(job: Job) -> tuple[str, ...]:
    """Names that kept columns of this job cannot have."""
    versions = () if job.input.version == "none" else (VERSIONS_COLUMN,)
    probabilities = (PROBABILITIES_COLUMN,) if job.answer.choices else ()
    embedding = (EMBEDDING_COLUMN,) if job.answer.embedding else ()
    return (*RESERVED_COLUMNS, *versions, *probabilities, *embedding)


def build_field(name: str) -> pa.Field:
    return pa.field(name, COLUMN_TYPES[name], nullable=name not in REQUIRED_COLUMNS)


def build_tables(outcomes: Sequence[Outcome], context: RunContext) -> tuple[pa.Table, pa.Table]:
    """The answered and the failed rows."""
    constants = {"model": context.model_name, "fingerprint": context.fingerprint, "run": context.run_id}
    answered = [to_answered_record(item, row) | constants for item, row in outcomes if isinstance(row, Row)]
    failed = [to_failed_record(item, row) | constants for item, row in outcomes if isinstance(row, Failure)]
    return build_table(answered, build_data_schema(context)), build_table(failed, build_errors_schema(context))


def build_table(records: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = [pa.array([record[field.name] for record in records], field.type) for field in schema]
    return pa.table(columns, schema=schema)


def to_answered_record(item: Item, row: Row) -> dict[str, Any]:
    probabilities = {} if row.probabilities is None else {PROBABILITIES_COLUMN: row.probabilities}
    embedding = {} if row.embedding is None else {EMBEDDING_COLUMN: row.embedding}
    versions = {} if item.media_versions is None else {VERSIONS_COLUMN: item.media_versions}
    return {
        **row.kept_values,
        **probabilities,
        **embedding,
        **versions,
        **{name: getattr(row, name) for name in ROW_FIELDS},
        "media": [{name: getattr(info, name) for name in info.__slots__} for info in row.media],
        "tokens": {"vision": row.vision_tokens, "prompt": row.prompt_tokens, "output": row.output_tokens},
        "attempts": item.history.attempts + row.attempts,
    }


def to_failed_record(item: Item, failure: Failure) -> dict[str, Any]:
    return {
        **item.kept_values,
        **{name: getattr(failure, name) for name in FAILURE_FIELDS},
        "id": item.id,
        "question": item.question,
        "attempts": item.history.attempts + failure.attempts,
    }
