"""Our engine compared with transformers' `generate`, one by one and in static batches, on the same weights.

    python tests/bench/engine.py [--quick] [--shape builtin|3b|7b] [--device cuda] [--compile]

There are two workloads: `mixed` (pictures of 100 to 1,500 px, every eighth a clip, answers of 4 to 256 tokens) and
`short` (pictures of 100 to 600 px, 32 tokens each); sizes and lengths are log-uniform. Lengths are forced, so all sides
generate the same tokens. No side decodes or resizes; ours includes cutting pixels into patches. The last table shows
the share of the device's limits that prefill and decoding reach.

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
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.model import family_loader, hf_models
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
}
REAL = {"3b": (2048, 11008, 36, 16, 2), "7b": (3584, 18944, 28, 28, 4)}
for name, (hidden, wide, layers, heads, kv) in REAL.items():
    SHAPES[name] = {
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": wide,
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


def workload(family: Family, kind: str, count: int) -> list[Request]:
    rng = np.random.default_rng(3)
    most = 600 if kind == "short" else 1500
    requests = []
    for number in range(count):
        clip = kind == "mixed" and number % 8 == 7
        width, height = (
            int(side) for side in np.exp(rng.uniform(math.log(100), math.log(most / (3 if clip else 1)), 2))
        )
        width, height = family.fit_image_size((width, height), MediaOptions(max_pixels=1280 * 28 * 28))
        pixels = rng.integers(0, 256, (8 if clip else 1, 3, height, width), dtype=np.uint8)
        times = tuple(frame / 2 for frame in range(8)) if clip else ()
        seen = Clip("video" if clip else "image", pixels, (width, height), times=times, fps=2.0 if clip else 0.0)
        length = 32 if kind == "short" else int(np.exp(rng.uniform(math.log(4), math.log(256))))
        turns = (Turn("user", (seen, "Say what you see.")),)
        encoded = family.encode_turns(turns)
        said = Sampling(max_new_tokens=length)
        requests.append(Request(str(number), turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, said))
    return requests


def ours(engine: TorchEngine, requests: Sequence[Request]) -> None:
    replies = list(generate_replies(engine, requests))
    assert sum(reply.output_tokens for reply in replies) == sum(request.sampling.max_new_tokens for request in requests)  # type: ignore[union-attr]


class Peer:
    """`generate` on left-padded batches. Normalised pixels and positions are computed before the clock starts."""

    def __init__(self, folder: Path, family: Family, device: str):
        kind = hf_models.get_model_class(family_loader.load_config(folder)["model_type"])
        self.model = kind.from_pretrained(folder, dtype="auto").eval().to(device)
        self.model.generation_config.eos_token_id = None
        self.family, self.device = family, device

    def prepare(self, requests: Sequence[Request]) -> dict[str, Any]:
        longest = max(len(request.input_ids) for request in requests)
        ids = torch.zeros(len(requests), longest, dtype=torch.long)
        positions = torch.zeros(4, len(requests), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, request in enumerate(requests):
            first = longest - len(request.input_ids)
            ids[line, first:] = torch.from_numpy(request.input_ids)
            mask[line, first:] = 1
            positions[0, line, first:] = torch.arange(longest - first)
            positions[1:, line, first:] = torch.from_numpy(request.positions)
        kinds = (ids == self.family.image_token).int() + 2 * (ids == self.family.video_token).int()
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "mm_token_type_ids": kinds}
        given |= self.pixels(requests)
        most = max(request.sampling.max_new_tokens for request in requests)
        return {name: part.to(self.device) for name, part in given.items()} | {"max_new_tokens": most}

    def pixels(self, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
        given = {}
        for kind, values, grids in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            clips = [clip for request in requests for clip in request.clips if clip.kind == kind]
            if clips:
                slices = [ClipSlice("", clip.pixels, grid(clip, self.family)) for clip in clips]
                cut = [patchify(torch.from_numpy(part.pixels), part.grid, self.family) for part in slices]
                given[values] = torch.cat(cut).to(self.model.dtype)
                given[grids] = torch.tensor([part.grid for part in slices])
        return given

    def answer(self, batches: Sequence[dict[str, Any]]) -> None:
        for batch in batches:
            self.model.generate(**batch, do_sample=False)


def grid(clip: Clip, family: Family) -> tuple[int, int, int]:
    frames, _, height, width = clip.pixels.shape
    return -(-frames // family.temporal_patch_size), height // family.patch_size, width // family.patch_size


def compare(
    engine: TorchEngine, peer: Peer, kind: str, *, rows: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    requests = workload(engine.sequence_builder.family, kind, rows)
    before = dict(engine.metrics())
    ours(engine, requests)
    after = dict(engine.metrics())
    sides: dict[str, Any] = {"ours": lambda: ours(engine, requests)}
    for size in (1, 8, 16, 32):
        batches = [peer.prepare(requests[first : first + size]) for first in range(0, rows, size)]
        sides["one by one" if size == 1 else f"batches of {size}"] = lambda batches=batches: peer.answer(batches)
    taken = harness.in_turns(sides, rounds=rounds)
    counted = {name: after[name] - before[name] for name in before}
    needed = counted["prompt_tokens"] + counted["output_tokens"] - counted["rows"]
    waste = counted["tokens_computed"] / needed
    busy = counted["busy_steps"] / counted["slot_steps"] if counted["slot_steps"] else 1.0
    lines = [[name, rows / time, taken[name] / taken["ours"]] for name, time in taken.items()]
    prompts = np.mean([len(request.input_ids) for request in requests])
    print(f"\n### {kind}: {rows} rows, {prompts:.0f} prompt tokens on average\n")
    print(harness.table(["side", "items/s", "time against ours"], lines))
    print(f"\ntokens computed / needed {waste:.3f}, slots busy {busy:.1%} until the tail")
    best = min(time for name, time in taken.items() if name.startswith("batches"))
    ratios = {
        f"{kind}_vs_best_static": best / taken["ours"],
        f"{kind}_vs_one_by_one": taken["one by one"] / taken["ours"],
    }
    figures = {f"{kind}_items_per_s": rows / taken["ours"], f"{kind}_waste": waste, f"{kind}_slots_busy": busy}
    return ratios, figures


def soak(engine: TorchEngine, count: int) -> dict[str, float]:
    """Print the resident MiB after a tenth of the rows and after all of them."""
    requests = workload(engine.sequence_builder.family, "short", 200)
    seen: dict[int, float] = {}
    asked = (replace(requests[row % 200], id=str(row), sampling=Sampling(1 + row % 16)) for row in range(count))
    for number, _ in enumerate(generate_replies(engine, asked), 1):
        if number in (count // 10, count):
            seen[number] = psutil.Process().memory_info().rss / 2**20
    return {"rss_mib_after_a_tenth": seen[count // 10], "rss_mib_after_all": seen[count]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="fewer rows, one round, one thread")
    options.add_argument("--shape", choices=SHAPES, default="builtin")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--threads", type=int, default=None)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--compile", action="store_true", help="compile our decoding pass (CUDA)")
    options.add_argument("--in-turn", action="store_true", help="no pass before the one before it was read (CUDA)")
    options.add_argument("--soak", type=int, default=0, help="answer so many rows, and nothing else")
    said = options.parse_args()
    torch.set_num_threads(said.threads or (1 if said.quick else torch.get_num_threads()))
    where = harness.machine("torch", "transformers")
    with tempfile.TemporaryDirectory() as folder:
        with torch.device(said.device):
            torch.set_default_dtype(torch.float32 if said.shape == "builtin" else torch.bfloat16)
            write_random_checkpoint(Path(folder), "qwen2_5_vl", **SHAPES[said.shape])
            torch.set_default_dtype(torch.float32)
        family = family_loader.load_family(Path(folder))
        engine = TorchEngine(Path(folder), family, device=said.device, compiled=said.compile)
        engine.can_launch_ahead = engine.can_launch_ahead and not said.in_turn
        peer = Peer(Path(folder), family, said.device)
    engine.detokenizer = type(engine.detokenizer)(family.tokenizer, frozenset(), None, frozenset())
    print(f"{sum(part.numel() for part in peer.model.parameters()) / 1e6:.1f} M weights, {said.device}, {where}")
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    if said.soak:
        harness.report("engine soak", ratios=ratios, figures=soak(engine, said.soak), where=where)
        return
    for kind in ("short", "mixed"):
        rows, rounds = (32, 1) if said.quick else (64 if kind == "short" else 128, said.rounds)
        more = compare(engine, peer, kind, rows=rows, rounds=rounds)
        ratios |= more[0]
        figures |= more[1]
    reached = device_limits.shares(engine, prompt=256 if said.device == "cpu" else 1024)
    print("\n" + harness.table(["share of the device's limits", ""], list(reached.items())))
    engine.close()
    harness.report("engine", ratios=ratios, figures=figures | reached, where=where)


if __name__ == "__main__":
    main()
