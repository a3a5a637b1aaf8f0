"""Builds the JSON Schema of job files. With it, editors complete keys, show their meaning, and mark mistakes.

It describes what people write, before variables are filled in: a number may be `${LIMIT:-5}`, a size `64MiB`.
`check` stays the judge: it also knows the rules that join several keys.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pipeline.job.job_loader import FREE_KEY_PREFIX
from pipeline.job.spec import DEFAULT_ENGINE, Job
from pipeline.registry import ENGINES, load_registered

VARIABLE = {"type": "string", "pattern": r"\$\{"}
VALUE_KEYWORDS = ("properties", "$defs", "patternProperties")  # their keys are names, not keywords
SCALAR_TYPES = ("integer", "number", "boolean", "string")
HIDDEN_KEYWORDS = ("title", "affects_answers")


def build_job_schema() -> dict[str, Any]:
    schema = Job.model_json_schema()
    definitions = schema.pop("$defs")
    del definitions["EngineSettings"]
    schema["properties"]["engine"] = build_engine_schema(definitions) | {
        "description": Job.model_fields["engine"].description
    }
    sections = {
        name: section if name in schema["required"] else {"anyOf": [section, {"type": "null"}]}
        for name, section in schema["properties"].items()
    }
    schema |= {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A job of vlbatch",
        "properties": sections,
        "patternProperties": {f"^{FREE_KEY_PREFIX}": {"description": "holds YAML anchors; not part of the job"}},
        "$defs": definitions,
    }
    return {**describe_written_values(schema), "title": schema["title"]}


def build_engine_schema(definitions: dict[str, Any]) -> dict[str, Any]:
    """The section `engine`, whose keys depend on `kind`. Adds the sections of all engines to the definitions."""
    choices = []
    for kind in ENGINES:
        settings: type[BaseModel] = load_registered(ENGINES, kind, "engine.kind").Settings
        section = settings.model_json_schema()
        section["required"] = [key for key in section.get("required", ()) if key != "kind"]
        definitions |= section.pop("$defs", {}) | {settings.__name__: section}
        is_given = [] if kind == DEFAULT_ENGINE else ["kind"]
        condition = {"properties": {"kind": {"const": kind}}, "required": is_given}
        choices.append({"if": condition, "then": {"$ref": f"#/$defs/{settings.__name__}"}})
    kinds = {"type": "string", "enum": [*ENGINES], "default": DEFAULT_ENGINE, "description": "what runs the model"}
    return {"type": "object", "properties": {"kind": kinds}, "allOf": choices}


def describe_written_values(schema: Any, *, holds_names: bool = False) -> Any:
    """The same schema for values as people write them: a variable may stand for any scalar."""
    if isinstance(schema, list):
        return [describe_written_values(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if "if" in schema:
        return schema
    written = {
        key: describe_written_values(value, holds_names=key in VALUE_KEYWORDS and not holds_names)
        for key, value in schema.items()
        if holds_names or (key not in HIDDEN_KEYWORDS and (key, value) != ("default", None))
    }
    is_free_text = schema.get("type") == "string" and not {"enum", "const", "pattern"} & schema.keys()
    if holds_names or is_free_text or schema.get("type") not in SCALAR_TYPES:
        return written
    notes = {key: written.pop(key) for key in ("description", "default") if key in written}
    return {"anyOf": [written, VARIABLE], **notes}
