"""Hashes everything that shapes an answer, so that answers to different questions stay apart.

Only settings that differ from their defaults count. So a key that a later version adds, with a default that keeps the
behaviour, does not change the fingerprints of existing outputs. What the code itself contributes to an answer counts as
SEMANTICS_VERSION; `tests/test_semantics.py` fails when it changes under the same number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from pipeline.job.keys import affects_answers
from pipeline.job.spec import Job

# Raise it when the same job gives other prompts, pixels, positions, coordinates or defaults than before: answers of
# before are then answers to another question. Version 1 is not hashed, because outputs from before it resume.
SEMANTICS_VERSION = 1


def collect_answer_settings(section: BaseModel) -> dict[str, Any]:
    """The settings that shape an answer and differ from their defaults."""
    settings: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not affects_answers(field) or value == field.default:
            continue
        setting = collect_answer_settings(value) if isinstance(value, BaseModel) else value
        if setting != {}:
            settings[field.alias or name] = setting
    return settings | (section.model_extra or {})


def build_fingerprint_inputs(
    job: Job,
    *,
    weights: str,
    schema_text: str | None,
    adapter: str | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The values that the fingerprint hashes. All but the job are the content behind its names.

    The kind of engine does not count, because all engines run the same weights. A server's name for other weights does.
    """
    inputs = collect_answer_settings(job)
    if weights:  # a server's model has a name only, which is part of `engine`
        inputs.setdefault("model", {})["weights"] = weights
    if examples:
        inputs["prompt"]["examples"] = list(examples)
    if adapter is not None:
        inputs["model"]["adapter"] = adapter
    if schema_text is not None:
        inputs.setdefault("answer", {})["schema"] = schema_text
    if inputs.get("engine", {}).get("model") == job.model.weights:
        del inputs["engine"]["model"]
    if SEMANTICS_VERSION > 1:
        inputs["semantics_version"] = SEMANTICS_VERSION
    return {name: settings for name, settings in inputs.items() if settings}


def compute_fingerprint(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:12]
