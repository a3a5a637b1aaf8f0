"""Checkpoints without weights, at tiny and at real sizes, for the fake device; requests and passes over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.builtin import random_checkpoint
from pipeline.model import family_loader, hf_models
from pipeline.model.engines.torch import engine as engine_module
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.types import Failure
from tests.model.engines.conftest import FAMILIES, HYBRID_FAMILIES, Lab
from tests.model.engines.fake_cuda import Recorder, fake_cuda

KINDS = [(family, "bf16") for family in FAMILIES] + [(family, "int4") for family in FAMILIES]
KINDS += [(family, weights) for family in HYBRID_FAMILIES for weights in ("bf16", "int4")]
KINDS += [(family, "awq") for family in FAMILIES[:3]]  # there is no AWQ layout of fused experts
Costs = dict[str, list[int]]  # by pass: kernels, bytes, peak bytes
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
TINY_TEXT = {  # four-bit groups of 128 fit
    "hidden_size": 128,
    "intermediate_size": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
TEXT_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_parameters": ROPE,
}
TEXT_QWEN3 = {
    "num_attention_heads": 32,
    "head_dim": 128,
    "vocab_size": 151936,
    "rope_parameters": ROPE | {"mrope_section": [24, 20, 20]},
}
TEXT_8B = TEXT_QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36}
TEXT_30B = TEXT_QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48}
TEXT_30B |= {"num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
TEXT_QWEN3_5 = {
    "head_dim": 256,
    "num_attention_heads": 16,
    "vocab_size": 248320,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "rope_parameters": ROPE | {"mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25, "mrope_interleaved": True},
}
TEXT_9B = TEXT_QWEN3_5 | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32}
TEXT_9B |= {"num_key_value_heads": 4}
TEXT_35B = TEXT_QWEN3_5 | {"hidden_size": 2048, "num_hidden_layers": 40, "num_key_value_heads": 2, "num_experts": 256}
TEXT_35B |= {"num_experts_per_tok": 8, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
VISION_QWEN3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
VISION_QWEN3 |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]}
WINDOWS = {"fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112}
REAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (TEXT_7B, {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4}),
    "qwen2_5_vl": (
        TEXT_7B,
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
        | WINDOWS,
    ),
    "qwen3_vl": (TEXT_8B | {"num_key_value_heads": 8}, VISION_QWEN3 | {"out_hidden_size": 4096}),
    "qwen3_vl_moe": (TEXT_30B, VISION_QWEN3 | {"out_hidden_size": 2048}),
    "qwen3_5": (TEXT_9B, VISION_QWEN3 | {"out_hidden_size": 4096}),
    "qwen3_5_moe": (TEXT_35B, VISION_QWEN3 | {"out_hidden_size": 2048}),
}


class FakeLab(Lab):
    """A checkpoint that has a config and a tokenizer only."""

    def __init__(
        self,
        folder: Path,
        model_type: str,
        *,
        size: str,
        weights: str,
        text_config: Mapping[str, Any] | None = None,
        vision_config: Mapping[str, Any] | None = None,
    ):
        """The configs change single sizes."""
        text, vision = random_checkpoint.MODEL_CONFIGS[model_type]
        if size == "real":
            text, vision = text | REAL[model_type][0], vision | REAL[model_type][1]
        else:
            width = "hidden_size" if model_type == "qwen2_vl" else "out_hidden_size"
            text = {"vocab_size": 320} | text | TINY_TEXT | ({"head_dim": 32} if "qwen3" in model_type else {})
            if model_type in HYBRID_FAMILIES:  # of which half is turned
                text |= {"head_dim": 64, "rope_parameters": text["rope_parameters"] | {"partial_rotary_factor": 0.5}}
            vision = vision | {width: text["hidden_size"]}
        tokenizer = random_checkpoint.build_tiny_tokenizer()
        text, vision = text | dict(text_config or {}), vision | dict(vision_config or {})
        config = hf_models.get_config_class(model_type)(
            text_config=text, vision_config=vision, **random_checkpoint.find_vision_token_ids(tokenizer)
        )
        config_json = config.to_dict() | {"dtype": "bfloat16"}
        if weights == "awq":
            config_json["quantization_config"] = AWQ
        folder.mkdir(parents=True, exist_ok=True)
        random_checkpoint.write_json(folder / "config.json", config_json)
        random_checkpoint.write_json(folder / "generation_config.json", {"eos_token_id": [1, 2]})
        random_checkpoint.write_json(
            folder / "tokenizer_config.json", random_checkpoint.build_tokenizer_config(model_type)
        )
        random_checkpoint.write_json(
            folder / "preprocessor_config.json", random_checkpoint.build_preprocessor_config(model_type)
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        self.folder = folder
        self.family = family_loader.load_family(folder)
        self.rng = np.random.default_rng(7)


def give_tokens(start_copy: Callable[..., Any]) -> Callable[..., Any]:
    """In place of reading what was sampled: the copy is started, and every token is the same."""

    def start(tokens: Any, logprobs: Any) -> Callable[[], tuple[list[int], list[float]]]:
        start_copy(tokens, logprobs)
        return lambda: ([65] * len(tokens), [0.0] * len(tokens))

    return start


def give_zeros(start_copy: Callable[..., Any]) -> Callable[..., Any]:
    """In place of reading vectors: the copy is started, and every number is zero."""

    def start(sums: Any) -> Callable[[], Any]:
        start_copy(sums)
        return lambda: SimpleNamespace(numpy=lambda: np.zeros(tuple(sums.shape), np.float32))

    return start


def open_recorded_engine(lab: Lab, recorder: Recorder, monkeypatch: Any, **options: Any) -> TorchEngine:
    """An engine whose passes are recorded under their names."""
    monkeypatch.setattr(engine_module, "start_copy_to_host", give_tokens(engine_module.start_copy_to_host))
    monkeypatch.setattr(engine_module, "start_copy", give_zeros(engine_module.start_copy))
    engine = TorchEngine(lab.folder, lab.family, device="cuda", **options)
    step_runner, vision_cache = engine.step_runner, engine.vision_cache
    run_step, encode = step_runner.run_step, vision_cache.encode_owned_slices

    def run_and_record(inputs: Any, *token_copy: Any) -> Any:
        is_prefill = min(inputs.query_lengths) > 1
        with recorder.record("graph" if inputs.is_decode else "prefill" if is_prefill else "mixed"):
            return run_step(inputs, *token_copy)

    def encode_and_record(assigned: Any) -> None:
        with recorder.record("vision"):
            encode(assigned)

    step_runner.run_step, vision_cache.encode_owned_slices = run_and_record, encode_and_record
    return engine


def run_all_passes(
    lab: Lab, recorder: Recorder, monkeypatch: Any, *, rows: int, side: int, **options: Any
) -> TorchEngine:
    """An engine that went through every kind of pass: vision, prefill, mixed and decode, in this order."""
    engine = open_recorded_engine(lab, recorder, monkeypatch, slots=rows, **options)
    sampling = [
        {"temperature": 0.7},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.9},
        {},
    ]
    first = lab.build_request("first", lab.make_image(side, side), "what?", max_new_tokens=6)
    others = [lab.build_request(str(row), "hello", max_new_tokens=4, **sampling[row % 4]) for row in range(rows - 2)]
    second = lab.build_request("second", lab.make_video(3, side, side // 2), "and?", max_new_tokens=4)
    for requests in ([first], [*others, second]):
        for request in requests:
            engine.submit(request)
        with recorder.record("step"):
            replies = engine.step()
    while engine.scheduler.running or engine.scheduler.waiting:
        with recorder.record("step"):
            replies += engine.step()
    assert not [reply for reply in replies if isinstance(reply, Failure)], replies
    assert {reply.output_tokens for reply in replies} == {4, 6}
    return engine


def measure_passes(
    model_type: str,
    weights: str,
    size: str,
    folder: Path,
    monkeypatch: Any,
    capability: tuple[int, int] = (9, 0),
    *,
    reuse_prefixes: bool = False,
) -> tuple[Costs, list[str], TorchEngine]:
    """Costs of all passes, what made the host wait in them, and the engine."""
    lab = FakeLab(folder, model_type, size=size, weights=weights)
    rows, side, prefill_tokens = (6, 4, 32) if size == "tiny" else (64, 64, 2048)  # some peak in vision, some in text
    options: dict[str, Any] = {"quantize": "int4"} if weights == "int4" else {}
    options["reuse_prefixes"] = reuse_prefixes  # else the costs depend on what prompts have in common
    options |= {"patches": 4 * side * side, "prefill_tokens": prefill_tokens}  # one picture fills a call of the tower
    with fake_cuda(monkeypatch, memory_bytes=80 * 10**9, capability=capability) as recorder:
        engine = run_all_passes(lab, recorder, monkeypatch, rows=rows, side=side, **options)
    costs = {name: [cost.kernels, cost.bytes, cost.peak_bytes] for name, cost in sorted(recorder.costs.items())}
    return costs, [f"{name}: {wait}" for name, waits in recorder.waits.items() for wait in waits], engine
