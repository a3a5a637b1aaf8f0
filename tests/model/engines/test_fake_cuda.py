"""The engine on a `cuda` device without memory and kernels: right devices and types, no waiting, known costs.

It cannot show numbers, real kernels, the capture of a graph, NCCL or times. `fake_cuda_costs.json` holds the kernels
and bytes of each pass; `python tests/bench/cuda_costs.py --write` writes it anew.
"""

import json
from pathlib import Path

import pytest
import torch

from pipeline.model import family_loader
from pipeline.model.engines.torch.memory import (
    CUDA_MEMORY_FRACTION,
    KEPT_CALLS,
    ROWS_PER_SLOT,
    estimate_feature_bytes,
    estimate_step_bytes,
)
from pipeline.model.engines.torch.model_size import measure_model
from tests.model.engines.fake_cuda import fake_cuda, find_compiler, load_device_guard
from tests.model.engines.fake_models import KINDS, FakeLab, measure_passes, open_recorded_engine

COSTS = json.loads((Path(__file__).parent / "fake_cuda_costs.json").read_text())
TOLERANCE = 0.1


@pytest.fixture(scope="session")
def device_guard(tmp_path_factory):
    if torch.cuda.is_available() or find_compiler() is None:
        pytest.skip("a CPU build of torch and a C++ compiler are needed")
    load_device_guard(tmp_path_factory.mktemp("guard"))


def check_all_passes(model_type, weights, size, tmp_path, monkeypatch):
    costs, waits, engine = measure_passes(model_type, weights, size, tmp_path / "model", monkeypatch)
    assert waits == []
    assert {weight.device.type for weight in engine.step_runner.loaded.language_model.parameters()} == {"cuda"}
    assert engine.step_runner.cache.keys[0].dtype == torch.bfloat16
    expected = COSTS[f"{size} {model_type} {weights}"]
    assert costs.keys() == expected.keys() == {"vision", "prefill", "mixed", "decode", "graph", "step"}
    for name, numbers in costs.items():  # cheaper by so much: write the table anew
        assert numbers == pytest.approx(expected[name], rel=TOLERANCE), f"{name}: kernels, bytes and peak"
    return costs, engine


@pytest.mark.parametrize(("model_type", "weights"), KINDS)
def test_all_passes_run_on_cuda_without_waiting_for_it(device_guard, model_type, weights, tmp_path, monkeypatch):
    check_all_passes(model_type, weights, "tiny", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "weights"), [kind for kind in KINDS if kind[1] == "bf16"])
def test_all_passes_run_on_cuda_at_real_sizes(device_guard, model_type, weights, tmp_path, monkeypatch):
    costs, engine = check_all_passes(model_type, weights, "real", tmp_path, monkeypatch)
    loaded, sizes = engine.step_runner.loaded, engine.sizes
    configs = loaded.language_model.config, loaded.vision_tower.config, 2
    limits = {"slots": sizes.slots, "prefill_tokens": sizes.prefill_tokens}
    plan = estimate_step_bytes(*configs, patches=sizes.patches, **limits)
    peaks = {name: numbers[2] for name, numbers in costs.items()}
    counted = peaks.pop("decode") + max(peaks.values())  # graphs have their own memory
    counted += (
        estimate_feature_bytes(*configs, patches=sizes.patches) * (KEPT_CALLS - 1) // KEPT_CALLS
    )  # of other calls
    assert counted < plan < 1.8 * counted


def test_the_engine_has_the_slots_and_the_cache_that_the_plan_promises(device_guard, tmp_path, monkeypatch):
    lab = FakeLab(tmp_path / "model", "qwen3_5", size="tiny", weights="bf16")
    planned = measure_model(family_loader.load_config(lab.folder))
    for gpu_bytes, least_slots, most_slots in ((7 * 10**7, 10, 250), (2 * 10**8, 256, 256)):
        with fake_cuda(monkeypatch, memory_bytes=gpu_bytes, capability=(9, 0)) as recorder:
            sizes = open_recorded_engine(lab, recorder, monkeypatch).sizes
        weights_bytes = planned.weights_bytes / CUDA_MEMORY_FRACTION  # the fake device has no room for them
        slots, kv_tokens = planned.choose_sizes(gpu_bytes + weights_bytes)
        assert least_slots <= slots <= most_slots
        assert slots == pytest.approx(sizes.slots, abs=1)
        kv_tokens -= ROWS_PER_SLOT * slots * planned.state_bytes // planned.token_bytes
        assert kv_tokens == pytest.approx(sizes.kv_tokens, rel=0.05)


def test_copying_shared_prefixes_waits_for_nothing(device_guard, tmp_path, monkeypatch):
    _, waits, engine = measure_passes(
        "qwen2_5_vl", "bf16", "tiny", tmp_path / "model", monkeypatch, reuse_prefixes=True
    )
    assert waits == []
    assert engine.metrics()["tokens_copied"] > 0


def test_a_mixture_does_not_wait_where_torch_has_no_grouped_product(device_guard, tmp_path, monkeypatch):
    """On an A100, `grouped_mm` copies the counts of each expert to the host, which ends the capture of a graph."""
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", None)
    _, waits, engine = measure_passes("qwen3_vl_moe", "bf16", "tiny", tmp_path / "model", monkeypatch, (8, 0))
    assert waits == []
    assert engine.graphs.is_usable
    assert engine.graphs.replay_count > 0


def test_the_recorder_sees_what_makes_the_host_wait(device_guard, monkeypatch):
    with fake_cuda(monkeypatch, memory_bytes=10**9, capability=(9, 0)) as recorder:
        values = torch.zeros(8, 8, device="cuda")
        causes = {
            "list as an index": lambda: values[[0, 1]],
            "mask as an index": lambda: values.index_put_((values[:, 0] > 0,), values[0]),
            "blocking copy": lambda: torch.zeros(8).to("cuda"),
            "copy from pageable memory": lambda: torch.zeros(8).to("cuda", non_blocking=True),
            "copy to the host": lambda: values.cpu(),
        }
        for name, cause in causes.items():
            with recorder.record(name):
                cause()
        with recorder.record("nothing"):
            torch.zeros(8).pin_memory().to("cuda", non_blocking=True)
    assert [name for name in causes if not recorder.waits[name]] == []
    assert recorder.waits["nothing"] == []
