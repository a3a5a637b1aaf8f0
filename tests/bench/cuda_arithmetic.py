"""How fast the engine can be on three cards, computed from counted kernels, bytes and products. No card is used.

    python tests/bench/cuda_arithmetic.py          or: make cuda-arithmetic

This is arithmetic, not a measurement. The passes run on a fake device that counts what they would do. A pass takes as
long as its matrix products take at 65 % of the card's peak, or their bytes at 85 % of its bandwidth if that is longer,
and then its other bytes at that bandwidth. Where the host launches kernel by kernel, it takes at least 10 us for each.
Vision, prefill and decode are added up, as if each ran in full passes after the other; in reality decoding rows share
passes with a prefill. What the host does between two steps is not counted.

The last column is with `engine.compile`, which fuses what layers do element by element; torch counted the bytes of one
compiled layer and of one compiled block at these widths.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.model import family_loader
from pipeline.model.engines.torch.memory import DEFAULT_PATCHES_BY_DEVICE, DEFAULT_SLOTS_BY_DEVICE
from pipeline.model.engines.torch.model_size import ModelSize, measure_model
from pipeline.model.engines.torch.torch_settings import DEFAULT_PREFILL_TOKENS
from pipeline.types import Clip
from tests.bench import harness
from tests.model.engines.fake_cuda import PassCost, fake_cuda, load_device_guard
from tests.model.engines.fake_models import REAL, FakeLab, open_recorded_engine

PRODUCT_SHARE, BANDWIDTH_SHARE, LAUNCH_SECONDS = 0.65, 0.85, 10e-6
SLOTS, PATCHES = DEFAULT_SLOTS_BY_DEVICE["cuda"], DEFAULT_PATCHES_BY_DEVICE["cuda"]


@dataclass(frozen=True)
class Card:
    name: str
    flops: float  # of dense bf16 products, a second
    bandwidth: float  # bytes a second
    memory: float  # bytes


@dataclass(frozen=True)
class Workload:
    name: str
    family: str
    frames: int  # 1 is a picture
    side: int  # of a frame, in vision tokens
    text_tokens: int
    new_tokens: int  # forced tokens too: each takes a step
    compiled_shares: tuple[float, float]  # of the other bytes, and of the kernels, that vision and prefill keep


CARDS = [Card("H100", 989e12, 3.35e12, 80e9), Card("A100", 312e12, 2.0e12, 80e9), Card("L4", 121e12, 0.3e12, 24e9)]
WORKLOADS = [
    Workload("captions, 7B (Qwen2.5-VL), 1 MP, 100 tokens", "qwen2_5_vl", 1, 36, 40, 100, (0.28, 0.37)),
    Workload("guided detect, 8B (Qwen3-VL), 1 MP, 150 tokens", "qwen3_vl", 1, 32, 200, 150, (0.40, 0.27)),
    Workload(
        "video, 8B (Qwen3-VL), 160 frames, 20,480 vision tokens, 64 tokens", "qwen3_vl", 160, 16, 40, 64, (0.40, 0.27)
    ),
]


def count_passes(workload: Workload, folder: Path, monkeypatch: Any) -> tuple[dict[str, PassCost], int]:
    """Costs of a full pass of each kind, and the vision tokens of a row."""
    lab = FakeLab(folder, workload.family, size="real", weights="bf16")
    with fake_cuda(monkeypatch, memory_bytes=80 * 10**9, capability=(9, 0)) as recorder:
        engine = open_recorded_engine(lab, recorder, monkeypatch, slots=SLOTS)
        side = workload.side
        vision_tokens = -(-workload.frames // 2) * side * side

        def make_clip() -> Clip:
            return lab.make_image(side, side) if workload.frames == 1 else lab.make_video(workload.frames, side, side)

        rows = -(-PATCHES // (4 * vision_tokens))
        requests = [lab.build_request(str(row), make_clip(), "x", max_new_tokens=40) for row in range(rows)]
        requests += [lab.build_request(f"text-{row}", "x", max_new_tokens=40) for row in range(SLOTS - rows)]
        for request in requests:
            engine.submit(request)
        while "decode" not in recorder.costs:
            engine.step()
    return recorder.costs, vision_tokens


def compute_seconds(
    cost: PassCost, card: Card, *, share: float = 1.0, other_share: float = 1.0, launch: float
) -> float:
    """`share` is how many of the rows that were counted there are; weights are read whole in any case."""
    bandwidth, flops = BANDWIDTH_SHARE * card.bandwidth, PRODUCT_SHARE * card.flops
    products = max(share * cost.flops / flops, cost.product_bytes / bandwidth)
    seconds = products + other_share * share * (cost.bytes - cost.product_bytes) / bandwidth
    return max(seconds, launch * other_share * cost.kernels)


def compute_line(
    workload: Workload, costs: dict[str, PassCost], vision_tokens: int, size: ModelSize, config: Any, card: Card
) -> list[object]:
    prompt_tokens = vision_tokens + workload.text_tokens
    row_tokens = prompt_tokens + workload.new_tokens
    slots, kv_tokens = size.choose_sizes(card.memory)
    rows = min(slots, kv_tokens // row_tokens)
    if rows < 1:
        return [card.name, "does not fit", *[""] * 6]
    attention_flops = 2 * config["num_hidden_layers"] * config["num_attention_heads"] * 128 * prompt_tokens**2

    def compute_prompt_seconds(vision_share: float, prefill_share: float) -> tuple[float, float]:
        vision = compute_seconds(costs["vision"], card, other_share=vision_share, launch=LAUNCH_SECONDS)
        prefill = compute_seconds(costs["prefill"], card, other_share=prefill_share, launch=LAUNCH_SECONDS)
        prefill *= prompt_tokens / DEFAULT_PREFILL_TOKENS
        return vision * 4 * vision_tokens / PATCHES, prefill + attention_flops / (PRODUCT_SHARE * card.flops)

    cache_bytes = rows * (prompt_tokens + workload.new_tokens / 2) * size.token_bytes
    step = compute_seconds(costs["decode"], card, share=rows / SLOTS, launch=0)
    step += cache_bytes / (BANDWIDTH_SHARE * card.bandwidth)
    decode = workload.new_tokens * step / rows
    parts = (*compute_prompt_seconds(1, 1), decode)
    compiled = sum(compute_prompt_seconds(*workload.compiled_shares)) + decode
    return [card.name, rows, *(1000 * seconds for seconds in (*parts, step)), 1 / sum(parts), 1 / compiled]


def main() -> None:
    print(__doc__)
    header = [
        "card",
        "rows at once",
        "vision ms/row",
        "prefill ms/row",
        "decode ms/row",
        "step ms",
        "rows/s",
        "compiled",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        load_device_guard(folder)
        for workload in WORKLOADS:
            with pytest.MonkeyPatch.context() as monkeypatch:
                costs, vision_tokens = count_passes(workload, folder / workload.name, monkeypatch)
            size = measure_model(family_loader.load_config(folder / workload.name))
            text = REAL[workload.family][0]
            print(f"### {workload.name}\n")
            lines = [compute_line(workload, costs, vision_tokens, size, text, card) for card in CARDS]
            print(harness.format_table(header, lines), end="\n\n")
            passes = [(name, cost) for name, cost in costs.items() if name in ("vision", "prefill", "decode")]
            lines = [
                [
                    name,
                    cost.kernels,
                    cost.flops / 1e12,
                    cost.product_bytes / 1e9,
                    (cost.bytes - cost.product_bytes) / 1e9,
                ]
                for name, cost in passes
            ]
            print(harness.format_table(["pass", "kernels", "TFLOP", "GB of products", "other GB"], lines), end="\n\n")


if __name__ == "__main__":
    main()
