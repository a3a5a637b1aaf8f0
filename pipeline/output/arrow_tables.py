"""Rows and Failures -> the two Parquet tables of a chunk.

Both schemas are fixed by the job and the manifest before anything runs, so a part without rows has the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.context import RunContext
from pipeline.types import Failure, Item, Outcome, Row

MEDIA_TYPE = pa.list_(
    pa.struct(
        [
            ("kind", pa.string()),
            ("uri", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("model_width", pa.int32()),
            ("model_height", pa.int32()),
            ("frames", pa.int32()),
            ("times", pa.list_(pa.float64())),
        ]
    )
)
TOKENS_TYPE = pa.struct([("vision", pa.int64()), ("prompt", pa.int64()), ("output", pa.int64())])
COLUMN_DESCRIPTIONS = {  # of the columns that are not the manifest's
    "id": "the row's name: input.id, or a hash of what it asks",
    "text": "what the model said",
    "answer": "the same in the schema's types; boxes, points and times are those of the original file",
    "finish": "stop, or length where the budget ended before the answer",
    "media": "what it saw: sizes in the original and for the model, frames, times in seconds",
    "tokens": "of the vision, of the whole prompt, of the output",
    "attempts": "how often the row was tried, over all runs",
    "thinking": "what a Thinking model thought",
    "logprob": "mean log-probability of the answer's tokens",
    "latency_s": "seconds from when the engine took the row until it had answered",
    "raw": "the model's own JSON, where geometry or repair changed it",
    "flags": "what was done to the answer: repaired, clamped, ...; shrunk: the server made its pictures smaller",
    "violations": "what the schema doubts about it, in sentences",
    "question": "hash of what the row asks",
    "model": "the weights",
    "fingerprint": "hash of all in the job that changes an answer",
    "run": "the run that answered it",
}
RESERVED_COLUMNS = (
    *COLUMN_DESCRIPTIONS,
    "stage",
    "kind",
    "message",
    "fp",
)  # no column of a manifest can have these names here


def build_data_schema(context: RunContext) -> pa.Schema:
    """The columns of an answered row."""
    answer = [context.schema.answer_field] if context.schema else []
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            *context.kept_schema,
            pa.field("text", pa.string()),
            *answer,
            pa.field("finish", pa.string()),
            pa.field("media", MEDIA_TYPE),
            pa.field("tokens", TOKENS_TYPE),
            pa.field("attempts", pa.int32()),
            pa.field("thinking", pa.string()),
            pa.field("logprob", pa.float64()),
            pa.field("latency_s", pa.float64()),
            pa.field("raw", pa.string()),
            pa.field("flags", pa.list_(pa.string())),
            pa.field("violations", pa.list_(pa.string())),
            pa.field("question", pa.string(), nullable=False),
            pa.field("model", pa.string()),
            pa.field("fingerprint", pa.string()),
            pa.field("run", pa.string()),
        ]
    )


def build_errors_schema(context: RunContext) -> pa.Schema:
    """The columns of a dead letter."""
    strings = ("stage", "kind", "message")
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            *context.kept_schema,
            *(pa.field(name, pa.string(), nullable=False) for name in strings),
            pa.field("attempts", pa.int32()),
            pa.field("text", pa.string()),
            pa.field("question", pa.string(), nullable=False),
            pa.field("fingerprint", pa.string()),
            pa.field("run", pa.string()),
        ]
    )


def build_tables(outcomes: Sequence[Outcome], context: RunContext) -> tuple[pa.Table, pa.Table]:
    """(answered, failed)."""
    same = {"model": context.model_name, "fingerprint": context.fingerprint, "run": context.run_id}
    rows = [to_answered_record(item, row) | same for item, row in outcomes if isinstance(row, Row)]
    failures = [to_failed_record(item, row) | same for item, row in outcomes if isinstance(row, Failure)]
    return build_table(rows, build_data_schema(context)), build_table(failures, build_errors_schema(context))


def build_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([pa.array([row[f.name] for row in rows], f.type) for f in schema], schema=schema)


def to_answered_record(item: Item, row: Row) -> dict[str, Any]:
    plain = (
        "id",
        "question",
        "text",
        "answer",
        "finish",
        "thinking",
        "logprob",
        "latency_s",
        "raw",
        "flags",
        "violations",
    )
    media = [{name: getattr(seen, name) for name in seen.__slots__} for seen in row.media]
    tokens = {"vision": row.vision_tokens, "prompt": row.prompt_tokens, "output": row.output_tokens}
    same = {"media": media, "tokens": tokens, "attempts": item.history.attempts + row.attempts}
    return {**row.kept_values, **{name: getattr(row, name) for name in plain}, **same}


def to_failed_record(item: Item, failure: Failure) -> dict[str, Any]:
    plain = {name: getattr(failure, name) for name in ("stage", "kind", "message", "text")}
    attempts = item.history.attempts + failure.attempts
    return {**item.kept_values, "id": item.id, "question": item.question, "attempts": attempts, **plain}
