"""Checkpoints that vLLM's CPU kernels can run, and requests for them."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.job.spec import Job
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.base import get_engine_type
from pipeline.types import Clip, Failure, Reply, Request, Sampling, Turn
from tests.model import chat_templates

ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
WIDE = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}  # head sizes that vLLM's CPU kernels support
VISION = {
    "qwen2_vl": {"hidden_size": 128},
    "qwen2_5_vl": {"out_hidden_size": 128},
    "qwen3_vl": {"out_hidden_size": 128},
}
SMALL = {"max_num_seqs": 8, "max_num_batched_tokens": 2048, "enforce_eager": True}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "label": {"type": "string"},
            "bbox_2d": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 999},
                "minItems": 4,
                "maxItems": 4,
            },
        },
        "required": ["label", "bbox_2d"],
        "additionalProperties": False,
    }
)


def write_tiny_checkpoint(folder: Path, kind: str) -> Path:
    rope = ROPE | ({"mrope_interleaved": True} if kind == "qwen3_vl" else {})  # as in the checkpoints of the hub
    return write_random_checkpoint(
        folder, kind, text_config=WIDE | {"rope_parameters": rope}, vision_config=VISION[kind]
    )


def write_hybrid_checkpoint(folder: Path) -> Path:
    """Qwen3.5, with sizes that vLLM's CPU kernels for Gated DeltaNet take."""
    rope = ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = WIDE | {"rope_parameters": rope, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
    return write_random_checkpoint(folder, "qwen3_5", text_config=text, vision_config=VISION["qwen3_vl"])


def write_thinking_checkpoint(folder: Path) -> Path:
    path = write_tiny_checkpoint(folder, "qwen3_vl") / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": chat_templates.THINKING}))
    return folder


def write_adapter(checkpoint: Path, folder: Path, *, rank: int = 4) -> Path:
    """A LoRA adapter in PEFT's layout, for all linear layers of the language model."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 3 * rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"k_proj": rank}}))
    weights, rng = {}, np.random.default_rng(2)
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        if "language_model" in name and name.endswith("_proj.weight"):
            for kind, shape in (("A", (rank, weight.shape[1])), ("B", (weight.shape[0], rank))):
                module = f"base_model.model.{name.removesuffix('.weight')}.lora_{kind}.weight"
                weights[module] = rng.normal(0, 0.2, shape).astype(np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def build_job(
    folder: Path, *, model_keys: dict[str, Any] | None = None, answer: dict[str, Any] | None = None, **engine: Any
) -> Job:
    model = {"weights": str(folder), "context": {"max_length": 2048}} | (model_keys or {})
    sections = {"name": "t", "input": {"manifest": "m"}, "output": {"path": "out"}, "model": model, "engine": engine}
    return Job.model_validate(sections | ({"answer": answer} if answer else {}))


def build_requests(family: Any, *, max_thinking_tokens: int | None = None) -> list[Request]:
    """Images of unusual shapes, several or none, videos at unusual rates, schemas with large and small budgets."""
    rng, side = np.random.default_rng(0), family.patch_size * family.merge_size

    def build_image(height: int, width: int) -> Clip:
        pixels = rng.integers(0, 256, (1, 3, height * side, width * side), dtype=np.uint8)
        return Clip("image", pixels, (width * side, height * side))

    def build_video(frames: int, height: int, width: int) -> Clip:
        pixels = rng.integers(0, 256, (frames, 3, height * side, width * side), dtype=np.uint8)
        times = tuple(0.3 + 0.7 * frame for frame in range(frames))
        return Clip("video", pixels, (width * side, height * side), "film", times, 1 / 0.7)

    rows: dict[str, tuple[tuple[str | Clip, ...], int, str | None]] = {
        "picture": ((build_image(4, 3), "what is this?"), 24, None),
        "two": ((build_image(2, 5), build_image(3, 3), "compare <|image_pad|> both"), 24, None),
        "words": (("no picture",), 24, None),
        "cut": ((build_image(4, 3), "box"), 40, SCHEMA),
        "whole": ((build_image(5, 3), "box"), 200, SCHEMA),
        "film": ((build_video(6, 2, 2), "what happens?"), 24, None),
        "films": (("first ", build_video(5, 2, 3), " then ", build_video(4, 2, 2), "?"), 24, None),
    }
    requests = []
    for name, (parts, budget, schema) in rows.items():
        turns = (Turn("user", parts),)
        encoded = family.encode_turns(turns)
        sampling = Sampling(max_new_tokens=budget, max_thinking_tokens=max_thinking_tokens)
        requests.append(
            Request(name, turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, sampling, schema)
        )
    return requests


def get_answers(job: Job, requests: list[Request]) -> dict[str, Reply | Failure]:
    with closing(get_engine_type(job).open(job)) as engine:
        return {answer.id: answer for answer in generate_replies(engine, requests)}


def summarize(answers: dict[str, Reply | Failure]) -> dict[str, list[str | None]]:
    return {name: list_contents(answer) for name, answer in answers.items()}


def list_contents(answer: Reply | Failure) -> list[str | None]:
    if isinstance(answer, Failure):
        return [answer.kind, answer.message]
    return [answer.text, answer.thinking, answer.finish]
