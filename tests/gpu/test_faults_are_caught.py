"""Faults that only a card would show are put into the engine one at a time, and a rehearsal finds each."""

import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.model.engines.torch import (
    attention,
    checkpoint,
    continuation_scorer,
    cuda_graphs,
    host_memory,
    int4,
    kv_cache,
    memory,
    model_loader,
    oom_backoff,
    step_runner,
    vector_pooler,
)
from tests.gpu import memory_plan, parity, quantized, signatures
from tests.gpu.bench import Bench, StepReport
from tests.model.engines.fake_cuda import find_compiler

slow = pytest.mark.slow


def run(folder: Path, check) -> list[str]:
    """The names of the checks that failed."""
    bench = Bench(torch.device("cpu"), True, folder, StepReport("step", folder / "step.json"), time.monotonic() + 600)
    try:
        check(bench)
    except (AssertionError, RuntimeError) as error:  # the step would be reported as failed
        bench.report.check(str(error), False)
    return [each["name"] for each in bench.report.values["checks"] if not each["passed"]]


def check_one_family(bench: Bench, model_type: str) -> None:
    with bench.stand_ins():
        parity.check_family(bench, model_type, ("flash, graphs, launched ahead",))


def scale_attention_wrongly(monkeypatch):
    attend = attention.attend
    monkeypatch.setattr(
        attention, "attend", lambda *args, scaling, **rest: attend(*args, scaling=1.1 * scaling, **rest)
    )


def leave_positions_of_graphs_stale(monkeypatch):
    fill = cuda_graphs.fill_from_host
    monkeypatch.setattr(
        cuda_graphs, "fill_from_host", lambda buffer, values: None if buffer.dim() == 2 else fill(buffer, values)
    )


def leave_run_lengths_of_graphs_short(monkeypatch):
    fill, numbers = cuda_graphs.fill_from_host, count()

    def fill_but_lengths(buffer, values):
        is_lengths = buffer.dtype == torch.int32 and next(numbers) % 2 == 1  # they follow the starts of the runs
        fill(buffer, np.maximum(values - 1, 1) if is_lengths else values)

    monkeypatch.setattr(cuda_graphs, "fill_from_host", fill_but_lengths)


def mix_up_tokens_launched_ahead(monkeypatch):
    locate = step_runner.locate_unread_tokens

    def locate_reversed(batch, unread):
        sources, targets = locate(batch, unread)
        return sources[::-1].copy(), targets

    monkeypatch.setattr(step_runner, "locate_unread_tokens", locate_reversed)


def lose_features_of_deeper_layers(monkeypatch):
    monkeypatch.setattr(model_loader, "add_deepstack_features", lambda hidden_states, pads, features: hidden_states)


def copy_no_prefixes(monkeypatch):
    monkeypatch.setattr(kv_cache.KVCache, "copy_tokens", lambda cache, copies: None)


def score_the_next_target(monkeypatch):
    list_targets = continuation_scorer.ContinuationScorer.list_targets

    def list_wrong_targets(scorer, token_count):
        columns = list_targets(scorer, token_count)
        return columns._replace(tokens=columns.tokens + 1)

    monkeypatch.setattr(continuation_scorer.ContinuationScorer, "list_targets", list_wrong_targets)


def pool_one_token_less(monkeypatch):
    find_span = vector_pooler.VectorPooler.find_span

    def find_shorter_span(pooler, *arguments):
        span = find_span(pooler, *arguments)
        return (span[0] - 1, span[1] - 1) if span and span[0] else span

    monkeypatch.setattr(vector_pooler.VectorPooler, "find_span", find_shorter_span)


NOT_NUMBERS = "the model's logits are not numbers"  # where unwritten memory holds some that are none
PARITY_FAULTS = [
    (scale_attention_wrongly, "qwen2_5_vl", "error of logits"),
    (leave_positions_of_graphs_stale, "qwen2_5_vl", "error of logits"),
    pytest.param(leave_run_lengths_of_graphs_short, "qwen2_5_vl", "error of logits", marks=slow),
    pytest.param(mix_up_tokens_launched_ahead, "qwen2_5_vl", "error of logits", marks=slow),
    pytest.param(lose_features_of_deeper_layers, "qwen3_vl", "error of logits", marks=slow),
    pytest.param(copy_no_prefixes, "qwen2_5_vl", "error of logits", marks=slow),
    pytest.param(score_the_next_target, "qwen2_5_vl", "error of probabilities of choices", marks=slow),
    pytest.param(pool_one_token_less, "qwen2_5_vl", "error of vectors (last)", marks=slow),
]


@pytest.mark.process
@pytest.mark.parametrize(("put_fault", "model_type", "expected"), PARITY_FAULTS)
def test_parity_finds_a_fault(put_fault, model_type, expected, monkeypatch, tmp_path):
    put_fault(monkeypatch)
    failed = run(tmp_path, lambda bench: check_one_family(bench, model_type))
    assert any(expected in name or NOT_NUMBERS in name for name in failed), failed


def shift_zeros_of_awq(monkeypatch):
    layer = int4.Int4Linear
    monkeypatch.setattr(
        int4, "Int4Linear", lambda nibbles, scales, zeros, bias: layer(nibbles, scales, zeros + scales, bias)
    )


def shift_zeros_of_rounding(monkeypatch):
    rounded = int4.round_to_nibbles

    def shift(*arguments):
        nibbles, scales, zeros = rounded(*arguments)
        return nibbles, scales, zeros - scales

    monkeypatch.setattr(int4, "round_to_nibbles", shift)


def ignore_scales_of_fp8(monkeypatch):
    read = checkpoint.Checkpoint.read_fp8_scale
    monkeypatch.setattr(checkpoint.Checkpoint, "read_fp8_scale", lambda *arguments: torch.ones_like(read(*arguments)))


@pytest.mark.process
@pytest.mark.parametrize(
    ("put_fault", "expected"),
    [
        (shift_zeros_of_awq, "AWQ checkpoint: logits in bfloat16"),
        pytest.param(shift_zeros_of_rounding, "int4 256 -> 192: unpacked weights", marks=slow),
        pytest.param(ignore_scales_of_fp8, "fp8 checkpoint: logits in bfloat16", marks=slow),
    ],
)
def test_the_quantized_step_finds_a_fault(put_fault, expected, monkeypatch, tmp_path):
    put_fault(monkeypatch)
    assert expected in run(tmp_path, quantized.run)


def plan_steps(factor):
    def put(monkeypatch):
        estimate = memory.estimate_step_bytes
        monkeypatch.setattr(memory, "estimate_step_bytes", lambda *a, **options: int(factor * estimate(*a, **options)))

    return put


def plan_a_cache(factor):
    def put(monkeypatch):
        measure = memory.measure_free_cuda_bytes
        monkeypatch.setattr(memory, "measure_free_cuda_bytes", lambda device: int(factor * measure(device)))

    return put


def halve_nothing(monkeypatch):
    monkeypatch.setattr(oom_backoff.StepLimits, "halve", lambda limits: True)


@slow
@pytest.mark.process
@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("put_fault", "expected"),
    [
        (plan_steps(2), "plan over the peak of a step"),
        (plan_steps(0.4), "peak of a step over the plan"),
        (plan_a_cache(2), "memory in use at the peak"),
        (plan_a_cache(0.5), "memory that is never used"),
        (halve_nothing, "out of memory: limits are halved"),
    ],
    ids=["step twice too large", "step too small", "cache twice too large", "cache too small", "limits stay"],
)
def test_the_memory_step_finds_a_fault(put_fault, expected, monkeypatch, tmp_path):
    put_fault(monkeypatch)
    assert expected in run(tmp_path, memory_plan.run)


@slow
@pytest.mark.process
@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_the_signatures_step_finds_copies_that_wait(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory, "pin", lambda tensor, device: tensor)
    monkeypatch.setattr(signatures, "TOY_KINDS", signatures.TOY_KINDS[:1])
    assert run(tmp_path, signatures.run)
