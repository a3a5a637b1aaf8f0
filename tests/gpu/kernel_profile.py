"""Step `profile`: which kernels take the time of one prefill and of one decoding step."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from pipeline.model.engines.torch.engine import TorchEngine
from tests.bench import device_limits
from tests.gpu import random_model
from tests.gpu.bench import Bench

KERNELS = 12  # named of each pass
MODEL = "7b"


def run(bench: Bench) -> None:
    lab = random_model.create_lab(bench.folder / "profile", MODEL, is_toy=bench.is_toy)
    rows, prompt_tokens = (3, 8) if bench.is_toy else (64, 512)
    options = {"kv_tokens": 500} if bench.is_toy else {"kv_tokens": 200_000}
    with (
        bench.stand_ins(),
        random_model.open_engine(lab, bench.device, slots=rows, dtype="bfloat16", **options) as engine,
    ):
        device_limits.measure_prefill(engine, rows=rows, prompt_tokens=prompt_tokens)  # libraries start
        for request in device_limits.build_text_requests(engine, rows, prompt_tokens, 12):
            engine.submit(request)
        profile_steps(bench, "prefill", engine, lambda: engine.step())
        while any(not sequence.is_prefilled for sequence in engine.scheduler.running):
            engine.step()
        for _ in range(3):
            engine.step()  # the graph is captured
        profile_steps(bench, "decode", engine, lambda: engine.step())


def profile_steps(bench: Bench, name: str, engine: TorchEngine, step: Callable[[], object]) -> None:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_cuda else [])]
    device_limits.synchronize(bench.device)
    with profile(activities=activities) as profiler:
        step()
        device_limits.synchronize(bench.device)
    kind = "self_device_time_total" if bench.is_cuda else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, kind))
    total = sum(getattr(event, kind) for event in events)
    bench.report.check(f"{name}: kernels were seen", total > 0)
    for event in events[:KERNELS]:
        microseconds = getattr(event, kind)
        bench.report.figure(f"{name}: {event.key[:60]}", f"{microseconds:.0f} us, {microseconds / total:.0%}")
