"""The schema and the default prompt of a job with `answer.choices`: what its columns hold, and what it asks.

One of several choices is a string. With `multi`, the answer has a boolean for each choice, so that scores, calibrations
and comparisons are by choice.
"""

from __future__ import annotations

from pipeline.job.answer_section import AnswerSection
from pipeline.schema import columns, json_schema
from pipeline.schema.json_schema import SchemaNode
from pipeline.schema.schema import Schema

MULTI_PROMPT = "Look carefully at what is given here."


def build_choice_schema(answer: AnswerSection) -> Schema:
    labels = list(answer.choices or ())
    schema: SchemaNode = {"type": "string", "enum": labels}
    if answer.multi:
        properties = {label: {"type": "boolean"} for label in labels}
        schema = {"type": "object", "properties": properties, "required": labels, "additionalProperties": False}
    return Schema(
        name="choices",
        model_name="",
        source="",
        text=json_schema.format_schema(schema),
        default_prompt=MULTI_PROMPT if answer.multi else build_single_prompt(answer),
        answer_field=columns.to_arrow_field(schema),
    )


def build_rerank_schema() -> Schema:
    """The answer is a probability."""
    schema: SchemaNode = {"type": "number", "minimum": 0, "maximum": 1}
    return Schema(
        name="rerank",
        model_name="",
        source="",
        text=json_schema.format_schema(schema),
        default_prompt="",
        answer_field=columns.to_arrow_field(schema),
    )


def build_single_prompt(answer: AnswerSection) -> str:
    lines = [f"- {describe_choice(label, text)}" for label, text in (answer.choices or {}).items()]
    return "\n".join(
        ["Which of these fits best?", *lines, "Answer with one of them, word for word, and with nothing else."]
    )


def describe_choice(label: str, description: str | None) -> str:
    """
    >>> describe_choice("fire", "open flames")
    'fire: open flames'
    """
    return f"{label}: {description}" if description else label
