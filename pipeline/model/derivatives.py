"""Checkpoints that were trained further from a known family and load as they are, with the settings they are used with.

A setting is here only where a source states it; the source is named beside it. Prompts are not repeated: a checkpoint
answers best to the one that its makers publish. `check` and `run` show the hint of a checkpoint by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.job.spec import Job


@dataclass(frozen=True, slots=True)
class Derivative:
    name: str  # what the checkpoint's name begins with
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # by key of a job
    advice: str = ""
    source: str = ""  # of settings and advice


DERIVATIVES = (
    Derivative(
        "olmOCR-2",
        "qwen2_5_vl",
        {"answer.temperature": 0.1, "answer.max_new_tokens": 8192},
        "ask with olmocr's build_no_anchoring_v4_yaml_prompt before a page of 1288 pixels on its longer side",
        "uv-scripts ocr/olmocr2-vllm.py",
    ),
    Derivative(
        "RolmOCR",
        "qwen2_5_vl",
        {"answer.max_new_tokens": 8192},
        "ask to return the plain text representation of the document as if reading it naturally",
        "uv-scripts ocr/rolm-ocr.py",
    ),
    Derivative(
        "Nanonets-OCR2",
        "qwen2_5_vl",
        {"answer.max_new_tokens": 15000},
        "ask with the prompt of its model card",
        "uv-scripts ocr/nanonets-ocr2.py",
    ),
    Derivative(
        "NuMarkdown",
        "qwen2_5_vl",
        {"media.min_pixels": 100 * 28 * 28, "media.max_pixels": 5000 * 28 * 28, "answer.max_new_tokens": 16384},
        "it thinks without being asked, and writes its answer between <answer> and </answer>",
        "uv-scripts ocr/numarkdown-ocr.py",
    ),
    Derivative(
        "Cosmos-Reason1",
        "qwen2_5_vl",
        {
            "media.video.fps": 4.0,
            "answer.temperature": 0.6,
            "answer.top_p": 0.95,
            "answer.max_new_tokens": 4096,
        },
        "its system message asks for <think> and <answer>",
        "jetson-containers cosmos-reason1/test.py",
    ),
    Derivative(
        "Cosmos-Reason2",
        "qwen3_vl",
        {"answer.temperature": 0.7, "answer.top_p": 0.8, "answer.top_k": 20},
        "it reasons where the question asks for <think>, then with temperature 0.6 and top_p 0.95",
        "nvidia-cosmos/cosmos-cookbook reason2/prompt_guide",
    ),
    Derivative(
        "UI-TARS-1.5",
        "qwen2_5_vl",
        {"media.min_pixels": 100 * 28 * 28, "media.max_pixels": 16384 * 28 * 28},
        "it writes pixels of the resized picture, as its family does",
        "bytedance/UI-TARS README_coordinates.md",
    ),
    Derivative("Chandra", "qwen3_vl", advice="Chandra 1 only; ask with the prompt of its package"),
    Derivative("FireRed-OCR", "qwen3_vl", advice="ask with the prompt of its model card"),
    Derivative("ABot-OCR", "qwen3_vl", advice="ask with the prompt of its model card"),
    Derivative("Cosmos3", "cosmos3_omni", advice="the weights of its generator are not read"),
)


def find_derivative(name: str) -> Derivative | None:
    """By a hub id, a folder or a server's name.

    >>> find_derivative("reducto/RolmOCR").model_type, find_derivative("Qwen/Qwen2.5-VL-7B-Instruct")
    ('qwen2_5_vl', None)
    """
    base_name = name.rstrip("/").rpartition("/")[2].lower()
    return next((entry for entry in DERIVATIVES if base_name.startswith(entry.name.lower())), None)


def describe_settings(job: Job) -> str | None:
    """A hint on how a job's checkpoint is used elsewhere; None where it is no known derivative."""
    derivative = find_derivative(job.model.weights or job.engine.get_served_model() or "")
    if derivative is None:
        return None
    changes = [f"{key}={value}" for key, value in derivative.settings.items() if get_setting(job, key) != value]
    used_with = f"; others use {' '.join(changes)}" if changes else ""
    source = f" ({derivative.source})" if derivative.source else ""
    return f"model.weights: {derivative.name}: {derivative.advice}{used_with}{source}"


def get_setting(job: Job, key: str) -> Any:
    value: Any = job
    for name in key.split("."):
        value = getattr(value, name)
    return value
