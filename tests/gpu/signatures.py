"""Step `signatures`: without a card, the engine's passes on a `cuda` device that has types and shapes but no memory.

It finds wrong devices, wrong types, arguments that an operator of CUDA does not take, and waits of the host for the
device. With a card the other steps find them.
"""

from __future__ import annotations

import pytest

from tests.gpu.bench import Bench
from tests.model.engines.fake_cuda import fake_cuda, find_compiler, load_device_guard
from tests.model.engines.fake_models import KINDS, FakeLab, run_all_passes

TOY_KINDS = [("qwen2_5_vl", "bf16"), ("qwen2_5_vl", "awq"), ("qwen3_5_moe", "int4")]
PASSES = {"vision", "prefill", "mixed", "decode"}
NEEDED = {"flash attention": "_flash_attention_forward", "int4 product": "_weight_int4pack_mm"}


def run(bench: Bench) -> None:
    if bench.is_cuda:
        bench.report.figure("not run", "a card is here: the other steps run the same operators")
        return
    if find_compiler() is None:
        bench.report.figure("not rehearsed", "operators on a device without memory, for want of a C++ compiler")
        return
    load_device_guard(bench.folder)
    operators: set[str] = set()
    for model_type, weights in TOY_KINDS if bench.is_toy else KINDS:
        operators |= check_kind(bench, model_type, weights)
    for name, operator in NEEDED.items():
        bench.report.check(f"{name} takes what the engine gives it on CUDA", operator in operators)


def check_kind(bench: Bench, model_type: str, weights: str) -> set[str]:
    """The operators that ran on the device."""
    name = f"{model_type} {weights}"
    lab = FakeLab(bench.folder / f"{model_type}-{weights}", model_type, size="tiny", weights=weights)
    options = {"quantize": "int4"} if weights == "int4" else {}
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        fake_cuda(monkeypatch, memory_bytes=80 * 10**9, capability=(9, 0)) as recorder,
    ):
        engine = run_all_passes(lab, recorder, monkeypatch, rows=6, side=4, patches=64, prefill_tokens=32, **options)
    bench.report.check(f"{name}: every pass ran", recorder.costs.keys() >= PASSES, str(set(recorder.costs)))
    waits = [f"{pass_name}: {wait}" for pass_name, found in recorder.waits.items() for wait in found]
    bench.report.check(f"{name}: the host never waits", not waits, "; ".join(waits[:3]))
    devices = {weight.device.type for weight in engine.step_runner.loaded.language_model.parameters()}
    bench.report.check(f"{name}: weights are on the device", devices <= {"cuda"}, str(devices))
    return recorder.operators
