"""Our engine compared with transformers' `generate`, one by one and in static batches, on the same weights.

    python tests/bench/engine.py [--quick] [--shape builtin|small_7b|3b|7b] [--device cuda] [--compile]

There are two workloads: `mixed` (pictures of 100 to 1,500 px, every eighth a clip, answers of 4 to 256 tokens) and
`short` (pictures of 100 to 600 px, 32 tokens each); sizes and lengths are log-uniform. Lengths are forced, so all sides
generate the same tokens. No side decodes or resizes; ours includes cutting pixels into patches. Every round answers the
same rows, so prefixes are not reused. The last table shows the share of the device's limits that prefill and decoding
reach.

On a shared machine use `--threads 1`: two threads that wait for each other measure the other users. `--soak N` answers
N rows with our engine alone and prints how memory changed.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.model import family_loader, hf_models
from pipeline.model.detokenizer import Detokenizer
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.vision_encoder import ClipSlice, patchify
from pipeline.model.families.base import Family
from pipeline.types import Clip, MediaOptions, Request, Sampling, Turn
from tests.bench import device_limits, harness

SHAPES: dict[str, dict[str, Any]] = {
    "builtin": {
        "text_config": {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        "vision_config": {
            "depth": 4,
            "hidden_size": 96,
            "num_heads": 4,
            "intermediate_size": 256,
            "out_hidden_size": 192,
            "fullatt_block_indexes": [3],
        },
    },
    # Qwen2.5-VL-7B with an eighth of its width and a quarter of its layers
    "small_7b": {
        "text_config": {
            "hidden_size": 448,
            "intermediate_size": 2368,
            "num_hidden_layers": 7,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "initializer_range": 0.05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        "vision_config": {
            "depth": 8,
            "hidden_size": 160,
            "num_heads": 4,
            "intermediate_size": 428,
            "out_hidden_size": 448,
            "fullatt_block_indexes": [1, 3, 5, 7],
        },
    },
}
REAL = {"3b": (2048, 11008, 36, 16, 2), "7b": (3584, 18944, 28, 28, 4)}
for name, (hidden, intermediate, layers, heads, kv) in REAL.items():
    SHAPES[name] = {
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "vocab_size": 151936,
            "initializer_range": 0.02,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "initializer_range": 0.02,
        },
    }


def build_requests(family: Family, kind: str, count: int) -> list[Request]:
    rng = np.random.default_rng(3)
    longest_side = 600 if kind == "short" else 1500
    requests = []
    for number in range(count):
        is_clip = kind == "mixed" and number % 8 == 7
        width, height = (
            int(side) for side in np.exp(rng.uniform(math.log(100), math.log(longest_side / (3 if is_clip else 1)), 2))
        )
        width, height = family.fit_image_size((width, height), MediaOptions(max_pixels=1280 * 28 * 28))
        pixels = rng.integers(0, 256, (8 if is_clip else 1, 3, height, width), dtype=np.uint8)
        times = tuple(frame / 2 for frame in range(8)) if is_clip else ()
        clip = Clip("video" if is_clip else "image", pixels, (width, height), times=times, fps=2.0 if is_clip else 0.0)
        length = 32 if kind == "short" else int(np.exp(rng.uniform(math.log(4), math.log(256))))
        turns = (Turn("user", (clip, "Say what you see.")),)
        encoded = family.encode_turns(turns)
        sampling = Sampling(max_new_tokens=length)
        requests.append(
            Request(str(number), turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, sampling)
        )
    return requests


def answer_with_ours(engine: TorchEngine, requests: Sequence[Request]) -> None:
    replies = list(generate_replies(engine, requests))
    assert sum(reply.output_tokens for reply in replies) == sum(request.sampling.max_new_tokens for request in requests)  # type: ignore[union-attr]


def never_stop(engine: TorchEngine) -> None:
    """Answers have the length that their requests ask for."""
    tokenizer = engine.sequence_builder.family.tokenizer
    engine.detokenizer = Detokenizer(tokenizer, frozenset(), None, frozenset())


class Peer:
    """`generate` on left-padded batches. Normalised pixels and positions are computed before the clock starts."""

    def __init__(self, model: Any, family: Family):
        model.generation_config.eos_token_id = None
        self.model, self.family, self.device = model, family, model.device

    def prepare(self, requests: Sequence[Request]) -> dict[str, Any]:
        longest = max(len(request.input_ids) for request in requests)
        ids = torch.zeros(len(requests), longest, dtype=torch.long)
        positions = torch.zeros(4, len(requests), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, request in enumerate(requests):
            first = longest - len(request.input_ids)
            ids[index, first:] = torch.from_numpy(request.input_ids)
            mask[index, first:] = 1
            positions[0, index, first:] = torch.arange(longest - first)
            positions[1:, index, first:] = torch.from_numpy(request.positions)
        kinds = (ids == self.family.image_token).int() + 2 * (ids == self.family.video_token).int()
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "mm_token_type_ids": kinds}
        inputs |= self.pixels(requests)
        max_new_tokens = max(request.sampling.max_new_tokens for request in requests)
        return {name: part.to(self.device) for name, part in inputs.items()} | {"max_new_tokens": max_new_tokens}

    def pixels(self, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
        inputs = {}
        for kind, values, grids in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            clips = [clip for request in requests for clip in request.clips if clip.kind == kind]
            if clips:
                slices = [ClipSlice("", clip.pixels, compute_grid(clip, self.family)) for clip in clips]
                patches = [patchify(torch.from_numpy(part.pixels), part.grid, self.family) for part in slices]
                inputs[values] = torch.cat(patches).to(self.model.dtype)
                inputs[grids] = torch.tensor([part.grid for part in slices])
        return inputs

    def answer(self, batches: Sequence[dict[str, Any]]) -> None:
        for batch in batches:
            self.model.generate(**batch, do_sample=False)


def compute_grid(clip: Clip, family: Family) -> tuple[int, int, int]:
    frames, _, height, width = clip.pixels.shape
    return -(-frames // family.temporal_patch_size), height // family.patch_size, width // family.patch_size


def compare_engines(
    engine: TorchEngine, peer: Peer, kind: str, *, rows: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    requests = build_requests(engine.sequence_builder.family, kind, rows)
    before = dict(engine.metrics())
    answer_with_ours(engine, requests)
    after = dict(engine.metrics())
    sides: dict[str, Any] = {"ours": lambda: answer_with_ours(engine, requests)}
    for size in (1, 8, 16, 32):
        batches = [peer.prepare(requests[first : first + size]) for first in range(0, rows, size)]
        sides["one by one" if size == 1 else f"batches of {size}"] = lambda batches=batches: peer.answer(batches)
    seconds = harness.measure_in_turns(sides, rounds=rounds)
    counters = {name: after[name] - before[name] for name in before}
    needed_tokens = counters["prompt_tokens"] + counters["output_tokens"] - counters["rows"]
    waste = counters["tokens_computed"] / needed_tokens
    busy = counters["busy_steps"] / counters["slot_steps"] if counters["slot_steps"] else 1.0
    lines = [[name, rows / time, seconds[name] / seconds["ours"]] for name, time in seconds.items()]
    prompts = np.mean([len(request.input_ids) for request in requests])
    print(f"\n### {kind}: {rows} rows, {prompts:.0f} prompt tokens on average\n")
    print(harness.format_table(["side", "items/s", "time against ours"], lines))
    print(f"\ntokens computed / needed {waste:.3f}, slots busy {busy:.1%} until the tail")
    best = min(time for name, time in seconds.items() if name.startswith("batches"))
    ratios = {
        f"{kind}_vs_best_static": best / seconds["ours"],
        f"{kind}_vs_one_by_one": seconds["one by one"] / seconds["ours"],
    }
    figures = {f"{kind}_items_per_s": rows / seconds["ours"], f"{kind}_waste": waste, f"{kind}_slots_busy": busy}
    figures[f"{kind}_graph_steps"] = counters["graph_steps"] / counters["steps"]
    return ratios, figures


def run_soak(engine: TorchEngine, count: int) -> dict[str, float]:
    """Print the resident MiB after a tenth of the rows and after all of them."""
    import psutil

    requests = build_requests(engine.sequence_builder.family, "short", 200)
    memory_mib: dict[int, float] = {}
    soak_requests = (replace(requests[row % 200], id=str(row), sampling=Sampling(1 + row % 16)) for row in range(count))
    for number, _ in enumerate(generate_replies(engine, soak_requests), 1):
        if number in (count // 10, count):
            memory_mib[number] = psutil.Process().memory_info().rss / 2**20
    return {"rss_mib_after_a_tenth": memory_mib[count // 10], "rss_mib_after_all": memory_mib[count]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round, one thread")
    parser.add_argument("--shape", choices=SHAPES, default="builtin")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile our decoding pass (CUDA)")
    parser.add_argument(
        "--in-turn", action="store_true", help="launch a step only after the previous one was read (CUDA)"
    )
    parser.add_argument("--soak", type=int, default=0, help="only answer this many rows and print memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or (1 if options.quick else torch.get_num_threads()))
    where = harness.describe_machine("torch", "transformers")
    with tempfile.TemporaryDirectory() as folder:
        with torch.device(options.device):
            torch.set_default_dtype(torch.float32 if options.shape == "builtin" else torch.bfloat16)
            write_random_checkpoint(Path(folder), "qwen2_5_vl", **SHAPES[options.shape])
            torch.set_default_dtype(torch.float32)
        family = family_loader.load_family(Path(folder))
        engine = TorchEngine(Path(folder), family, device=options.device, compile=options.compile, reuse_prefixes=False)
        engine.can_launch_ahead = engine.can_launch_ahead and not options.in_turn
        kind = hf_models.get_model_class(family_loader.load_config(Path(folder))["model_type"])
        peer = Peer(kind.from_pretrained(folder, dtype="auto").eval().to(options.device), family)
    never_stop(engine)
    print(f"{sum(part.numel() for part in peer.model.parameters()) / 1e6:.1f} M weights, {options.device}, {where}")
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    if options.soak:
        harness.print_report("engine soak", ratios=ratios, figures=run_soak(engine, options.soak), where=where)
        return
    for kind in ("short", "mixed"):
        rows, rounds = (32, 1) if options.quick else (64 if kind == "short" else 128, options.rounds)
        kind_results = compare_engines(engine, peer, kind, rows=rows, rounds=rounds)
        ratios |= kind_results[0]
        figures |= kind_results[1]
    shares = device_limits.measure_shares(engine, prompt_tokens=256 if options.device == "cpu" else 1024)
    print("\n" + harness.format_table(["share of the device's limits", ""], list(shares.items())))
    engine.close()
    harness.print_report("engine", ratios=ratios, figures=figures | shares, where=where)


if __name__ == "__main__":
    main()
