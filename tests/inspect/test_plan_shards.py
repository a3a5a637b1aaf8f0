"""The simulation of large runs, and what `plan` says about drivers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inspect.plan.gpus import GpuEstimate
from pipeline.inspect.plan.shard_advice import advise_shards, format_shard_advice
from pipeline.inspect.plan.simulation import DriverCosts, Requests, Workload, count_fed_replicas, simulate_run
from pipeline.job.job_loader import parse_job

FREE = DriverCosts(task_s=0.0, slice_s=0.0, ledger_task_s=0.0, ledger_slice_s=0.0, start_s=0.0)
JOB = """
name: labels
input: {manifest: m.parquet, media: uri}
prompt: {user: "?"}
model: {weights: Qwen/Qwen3-VL-8B-Instruct}
workers: {generate: WORKERS}
output: {path: out, chunk_rows: 100}
"""


def advise(workers, *, rows=10**8):
    """With GPUs that answer 30 rows a second."""
    hours = rows / 30 / 3600
    offers = [
        GpuEstimate("slow", 1, 0, 1, 2 * hours, 2 * hours, 1.0, 1.0, False),
        GpuEstimate("fast", 1, 0, 1, hours, 2 * hours, 1.0, 1.0, False),
        GpuEstimate("small", 1, 0, 0, None, None, None, None, False),
    ]
    return advise_shards(parse_job(JOB.replace("WORKERS", workers)), rows, 3e6, offers)


@settings(max_examples=30)
@given(st.integers(1, 1000), st.integers(1, 64), st.integers(1, 40))
def test_without_costs_a_run_takes_as_long_as_the_busiest_replica(chunks, replicas, chunk_s):
    run = simulate_run(Workload(10 * chunks, 10, replicas, 10 / chunk_s), FREE)
    assert run.seconds == pytest.approx(-(-chunks // replicas) * chunk_s)
    assert run.busy_share == pytest.approx(chunks * chunk_s / (replicas * run.seconds))


@settings(max_examples=10)
@given(st.integers(20, 400), st.floats(0.001, 0.1))
def test_a_driver_bounds_the_speed_however_many_replicas_there_are(replicas, task_s):
    costs = replace(FREE, task_s=task_s)
    run = simulate_run(Workload(3000, 1, replicas, 1.0), costs)
    assert run.seconds >= max(3000 * task_s, 3000 / replicas)
    assert run.seconds <= 3000 * task_s + 3000 / replicas + 6
    assert run.driver_cpu_share == pytest.approx(3000 * task_s / run.seconds)


def test_long_runs_are_extrapolated():
    """A tenth of the tasks is simulated; the speed of a driver that is the bottleneck is exact."""
    run = simulate_run(Workload(10**6, 1, 1000, 1.0), replace(FREE, task_s=0.01))
    assert run.seconds == pytest.approx(10**4, rel=0.01)


def test_shards_and_loading_count():
    load = Workload(10**7, 100, 1000, 30.0, load_s=60.0)
    costs = DriverCosts(task_s=0.011)
    one, four = simulate_run(load, costs), simulate_run(replace(load, drivers=4), costs)
    assert one.busy_share < 0.35
    assert four.busy_share > 2.5 * one.busy_share
    growing = simulate_run(replace(load, drivers=4, first_replicas=1), costs)
    assert four.seconds + 60 < growing.seconds < four.seconds + 3 * (60 + costs.start_s), "1, 9, 81, then 250"
    assert one.requests == Requests(10**5, 2 * 10**5, pytest.approx(0.58))


def test_slices_cost_tasks_and_chunks_cost_requests():
    load = Workload(10**7, 100, 10, 30.0)
    costs = DriverCosts()
    whole, sliced = simulate_run(load, costs), simulate_run(replace(load, chunk_rows=1000, slice_rows=100), costs)
    assert sliced.requests.puts == whole.requests.puts / 10
    assert sliced.requests.cost == pytest.approx(whole.requests.cost / 10)
    assert sliced.seconds == pytest.approx(whole.seconds, rel=0.01), "slices of a chunk are divided among replicas"
    assert sliced.driver_cpu_share == pytest.approx(1.1 * whole.driver_cpu_share, rel=0.01)


@pytest.mark.parametrize(("chunk_rows", "row_bytes"), [(89, math.inf), (89, 1e5), (4, 1e5), (4, math.inf)])
def test_a_driver_keeps_the_replicas_busy_that_it_is_said_to_feed(chunk_rows, row_bytes):
    fed = count_fed_replicas(chunk_rows, 30.0, row_bytes)
    load = Workload(120_000 * chunk_rows, chunk_rows, fed, 30.0, row_bytes=row_bytes)
    shares = [simulate_run(replace(load, replicas=count)).busy_share for count in (fed, 2 * fed)]
    assert shares[0] > 0.9
    assert shares[1] < 0.6


def test_small_chunks_share_a_task_and_its_costs_if_they_fit_into_memory():
    light, heavy = (Workload(10**7, 4, 10, 30.0, row_bytes=row_bytes) for row_bytes in (1e5, 1e8))
    assert (light.task_slices, heavy.task_slices) == (2, 1)
    assert count_fed_replicas(4, 30.0, 1e5) > 1.8 * count_fed_replicas(4, 30.0, 1e8)
    costs = DriverCosts(task_s=0.004, slice_s=0.001)
    assert (light.count_driver_s(costs), heavy.count_driver_s(costs)) == pytest.approx((0.006, 0.005))


def test_more_replicas_than_a_driver_feeds_are_divided_among_several():
    assert advise("{gpus: 1, max: 100}") is None
    advice = advise("{gpus: 1, max: 1000}")
    assert (advice.gpu, advice.replicas) == ("fast", 1000)
    assert advice.fed_replicas * (advice.shards - 1) < 1000 <= advice.fed_replicas * advice.shards
    first, *others = format_shard_advice(advice)
    assert first.startswith(f"careful: one driver feeds about {advice.fed_replicas} replicas on fast, and")
    assert f"submit --shards {advice.shards}, on several by run --shard 1/{advice.shards}" in others[1]
    assert advise("{gpus: 1, max: 1000}", rows=10**6) is None, "it takes minutes"


def test_without_a_maximum_only_a_long_run_is_advised():
    assert advise("{gpus: 1}") is None
    advice = advise("{gpus: 1}", rows=10**10)
    assert "--shards divides more replicas among several drivers" in next(format_shard_advice(advice))
    assert advise("{gpus: 0, max: 10000}") is None
