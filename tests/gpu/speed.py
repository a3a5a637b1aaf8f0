"""Steps `speed-...`: one model at its real shape with random weights, against the ceilings and against `generate`.

Values of weights change no speed. Answers have forced lengths, so both sides generate the same number of tokens, and
no grammar. What is most telling comes first; what there is no time for is left out and named.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from pipeline.model import family_loader
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.model_size import measure_model
from pipeline.model.engines.torch.vision_encoder import ClipSlice, encode_slices
from pipeline.types import Clip, Request
from tests.bench import device_limits
from tests.bench.engine import Peer, answer_with_ours, compute_grid
from tests.gpu import random_model
from tests.gpu.bench import Bench
from tests.model.engines.conftest import Lab


@dataclass(frozen=True)
class Mix:
    """What the rows of a job are like, and how many are asked."""

    frames: int  # 1 is a picture
    side: int  # of a frame, in vision tokens
    text_tokens: int
    new_tokens: int  # on average; answers have 0.4 to 1.6 times as many
    rows: int
    static_rows: int  # in a batch of `generate`


@dataclass(frozen=True)
class Sizes:
    mixes: dict[str, Mix]
    prefill_tokens: tuple[int, ...]  # of a pass
    prompt_tokens: int  # of a row
    decode_rows: tuple[int, ...]
    decode_prompt_tokens: int
    images: int
    image_side: int
    shared_tokens: int  # that the prompts of 64 rows begin with
    estimated_seconds: float  # of one part below


REAL = Sizes(
    mixes={
        "caption": Mix(1, 36, 40, 100, 128, 32),
        "detect": Mix(1, 32, 200, 150, 96, 32),
        "invoice": Mix(1, 46, 300, 400, 64, 16),
        "video": Mix(160, 16, 40, 64, 6, 2),
    },
    prefill_tokens=(1024, 4096, 16384),
    prompt_tokens=1024,
    decode_rows=(16, 64, 256),
    decode_prompt_tokens=512,
    images=24,
    image_side=36,
    shared_tokens=2048,
    estimated_seconds=6.0,
)
TOY = Sizes(
    mixes={"caption": Mix(1, 3, 4, 5, 5, 3), "video": Mix(4, 2, 4, 3, 2, 2)},
    prefill_tokens=(16, 64),
    prompt_tokens=16,
    decode_rows=(2, 4),
    decode_prompt_tokens=8,
    images=3,
    image_side=3,
    shared_tokens=64,
    estimated_seconds=0.0,
)


def run(bench: Bench, model_name: str) -> None:
    sizes = TOY if bench.is_toy else REAL
    lab = random_model.create_lab(bench.folder / model_name, model_name, is_toy=bench.is_toy)
    requests = {name: build_requests(lab, mix, rows=mix.rows) for name, mix in sizes.mixes.items()}
    options = {"kv_tokens": 500} if bench.is_toy else {}
    rates: dict[str, float] = {}
    with (
        bench.stand_ins(),
        random_model.open_engine(
            lab,
            bench.device,
            slots=max(sizes.decode_rows),
            prefill_tokens=max(sizes.prefill_tokens),
            dtype="bfloat16",
            **options,
        ) as engine,
    ):
        bench.report.figure("tokens of cache", engine.sizes.kv_tokens)
        measure_limits(bench, engine, sizes)
        for name, mix_requests in requests.items():
            if has_time(bench, sizes, f"{name}, rows/s"):
                rates[name] = measure_mix(bench, engine, lab, name, mix_requests)
        if has_time(bench, sizes, "shared prefixes"):
            measure_shared_prefix(bench, engine, sizes)
        if has_time(bench, sizes, "vision images/s"):
            measure_tower(bench, engine, lab, sizes)
    del engine
    gc.collect()
    if bench.is_cuda:
        torch.cuda.empty_cache()
    if not has_time(bench, sizes, "static batches"):
        return
    peer = Peer(random_model.build_reference(lab, bench.device), lab.family)
    for name, rate in rates.items():
        if has_time(bench, sizes, f"{name}, static batches of generate"):
            compare_with_static(bench, peer, name, requests[name][: sizes.mixes[name].static_rows], rate)


def has_time(bench: Bench, sizes: Sizes, name: str) -> bool:
    if bench.has_time(sizes.estimated_seconds):
        return True
    bench.report.figure(name, "no time")
    return False


def build_requests(lab: Lab, mix: Mix, *, rows: int) -> list[Request]:
    """Rows with media of their own: a picture that two rows share would be encoded once."""
    lengths = np.random.default_rng(3).uniform(0.4, 1.6, rows) * mix.new_tokens
    make = lab.make_image(mix.side, mix.side) if mix.frames == 1 else lab.make_video(mix.frames, mix.side, mix.side)
    requests = []
    for row, length in enumerate(lengths):
        pixels = make.pixels.copy()
        pixels.flat[:8] = np.frombuffer(np.int64(row).tobytes(), np.uint8)
        clip = Clip(make.kind, pixels, make.source_size, times=make.times, fps=make.fps)
        requests.append(lab.build_request(str(row), clip, "a" * mix.text_tokens, max_new_tokens=max(1, round(length))))
    return requests


def measure_limits(bench: Bench, engine: TorchEngine, sizes: Sizes) -> None:
    """Shares of the ceilings, which are measured anew: a card slows down when it gets warm."""
    side, size = (64, 2**16) if bench.is_toy else (None, None)
    ceiling = device_limits.measure_matmul_flops(bench.device, torch.bfloat16, side=side)
    copy_rate = device_limits.measure_copy_bandwidth(bench.device, size=size)
    device_limits.measure_prefill(engine, rows=2, prompt_tokens=sizes.prompt_tokens)  # libraries start
    for tokens in sizes.prefill_tokens:
        if has_time(bench, sizes, f"prefill, {tokens} tokens a pass, MFU"):
            engine.limits.prefill_tokens = tokens
            rows = max(4, 2 * tokens // sizes.prompt_tokens)
            flops, rate = device_limits.measure_prefill(engine, rows=rows, prompt_tokens=sizes.prompt_tokens)
            bench.report.figure(f"prefill, {tokens} tokens a pass, MFU", flops / ceiling)
            bench.report.figure(f"prefill, {tokens} tokens a pass, tokens/s", rate)
    engine.limits.prefill_tokens = min(4096, engine.sizes.prefill_tokens)
    for rows in sizes.decode_rows:
        if rows <= engine.sizes.slots and has_time(bench, sizes, f"decode, {rows} rows, share of bandwidth"):
            moved, step_s = device_limits.measure_decode(
                engine, rows=rows, prompt_tokens=sizes.decode_prompt_tokens, new_tokens=4 if bench.is_toy else 48
            )
            bench.report.figure(f"decode, {rows} rows, share of bandwidth", moved / copy_rate)
            bench.report.figure(f"decode, {rows} rows, ms a step", 1000 * step_s)
    bench.report.check("the engine ran in graphs", engine.graphs is not None and engine.graphs.is_usable)


def measure_mix(bench: Bench, engine: TorchEngine, lab: Lab, name: str, requests: Sequence[Request]) -> float:
    started = device_limits.synchronize(bench.device)
    answer_with_ours(engine, requests)
    seconds = device_limits.synchronize(bench.device) - started
    rate = len(requests) / seconds
    bench.report.figure(f"{name}, rows/s", rate)
    config = family_loader.load_config(lab.folder)
    memory_gib = torch.cuda.get_device_properties(bench.device).total_memory / 2**30 if bench.is_cuda else 0.0
    bench.report.add_row(
        {
            "engine": "torch",
            "card": torch.cuda.get_device_name(bench.device) if bench.is_cuda else "cpu",
            "memory_gib": round(memory_gib, 1),
            "family": config["model_type"],
            "mix": name,
            "rows": len(requests),
            "rows_at_once": min(len(requests), engine.sizes.slots),
            "vision_tokens": np.mean([request.vision_tokens for request in requests]).item(),
            "prompt_tokens": np.mean([len(request.input_ids) for request in requests]).item(),
            "output_tokens": np.mean([request.sampling.max_new_tokens for request in requests]).item(),
            "rows_per_s": round(rate, 4),
            "model": asdict(measure_model(config)),
            "versions": {"torch": torch.__version__},
            "date": time.strftime("%Y-%m-%d"),
        }
    )
    return rate


def measure_shared_prefix(bench: Bench, engine: TorchEngine, sizes: Sizes) -> None:
    """Rows whose prompts begin alike against rows of the same lengths that share nothing."""
    rates, rows = {}, 4 if bench.is_toy else 64
    for name in ("nothing shared", "shared"):
        requests = device_limits.build_text_requests(engine, rows, sizes.shared_tokens + 32, 4)
        if name == "shared":
            for request in requests:
                request.input_ids[: sizes.shared_tokens] = requests[0].input_ids[: sizes.shared_tokens]
        before = engine.metrics()["tokens_copied"]
        started = device_limits.synchronize(bench.device)
        answer_with_ours(engine, requests)
        rates[name] = rows / (device_limits.synchronize(bench.device) - started)
        copied = engine.metrics()["tokens_copied"] - before
        bench.report.check(f"prefixes, {name}: tokens are copied", (copied > 0) == (name == "shared"), f"{copied}")
    bench.report.figure(f"{sizes.shared_tokens} shared tokens, rows/s", rates["shared"])
    bench.report.figure("shared over nothing shared", rates["shared"] / rates["nothing shared"])


def measure_tower(bench: Bench, engine: TorchEngine, lab: Lab, sizes: Sizes) -> None:
    clips = [lab.make_image(sizes.image_side, sizes.image_side) for _ in range(4)]
    slices = [ClipSlice("", clip.pixels, compute_grid(clip, lab.family)) for clip in clips]
    cache, calls = engine.vision_cache, max(1, sizes.images // len(clips))

    def encode() -> None:
        encode_slices(cache.vision_tower, slices, cache.vision_config, has_flash=cache.has_flash)

    encode()  # libraries start
    started = device_limits.synchronize(bench.device)
    for _ in range(calls):
        encode()
    seconds = device_limits.synchronize(bench.device) - started
    bench.report.figure(f"vision tower, images/s of {sizes.image_side**2} tokens", calls * len(clips) / seconds)


def compare_with_static(bench: Bench, peer: Peer, name: str, requests: Sequence[Request], our_rate: float) -> None:
    """`generate` on one left-padded batch, which is as slow as its longest answer."""
    batch = peer.prepare(requests)
    started = device_limits.synchronize(bench.device)
    with torch.inference_mode():
        peer.answer([batch])
    rate = len(requests) / (device_limits.synchronize(bench.device) - started)
    bench.report.figure(f"{name}, rows/s of generate in a batch of {len(requests)}", rate)
    bench.report.figure(f"{name}, ours over static batches", our_rate / rate)
