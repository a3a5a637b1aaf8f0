"""TODO."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.job.spec import Job


def collect_answer_settings(section: BaseModel) -> dict[str, Any]:
    """What a job says that changes an answer: only values that differ from the defaults."""
    out: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra
        if (isinstance(extra, dict) and not extra.get("answers", True)) or value == field.default:
            continue
        inner = collect_answer_settings(value) if isinstance(value, BaseModel) else value
        if inner != {}:
            out[field.alias or name] = inner
    return out | (section.model_extra or {})


def build_fingerprint_inputs(job: Job, *, weights: str, schema_text: str | None) -> dict[str, Any]:
    """All that decides what the model would say to a row. `weights` and `schema` stand for their content.

    The kind of engine is not in it, for engines run the same weights; a server's name for other weights is.
    """
    said = collect_answer_settings(job)
    said.setdefault("model", {})["weights"] = weights
    if schema_text is not None:
        said.setdefault("answer", {})["schema"] = schema_text
    if said.get("engine", {}).get("model") == job.model.weights:
        del said["engine"]["model"]
    return {name: each for name, each in said.items() if each}


def compute_fingerprint(inputs: Mapping[str, Any]) -> str:
    """A short name for a question; equal exactly when the questions are."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:12]
