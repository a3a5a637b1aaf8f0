"""The sizes of the worker pools, and the errors for clusters that are too small."""

from __future__ import annotations

import pytest

from pipeline.cluster.pools import PoolSizes, compute_pool_sizes, count_concurrent_calls
from pipeline.errors import JobError
from pipeline.job.spec import Job


def job(**workers) -> Job:
    tensor_parallel = max(1, int(workers.get("generate", {}).get("gpus", 1)))
    model = {"weights": "w", "tensor_parallel": tensor_parallel}
    required = {"name": "t", "input": {"manifest": "m"}, "model": model, "output": {"path": "o"}}
    return Job.model_validate({**required, "workers": workers})


def test_both_pools_share_the_cpu_of_a_laptop():
    assert compute_pool_sizes(job(), [{"CPU": 1.0}]) == PoolSizes(
        prepare_max=1, prepare_cpus=0.5, generate_max=1, generate_cpus=0.5
    )


def test_a_fixed_cluster_is_filled():
    found = compute_pool_sizes(job(generate={"gpus": 1}), [{"CPU": 32.0, "GPU": 4.0}])
    assert found == PoolSizes(prepare_max=28, prepare_cpus=1.0, generate_max=4, generate_cpus=1.0)
    assert compute_pool_sizes(job(generate={"gpus": 1, "max": 3}), [{"CPU": 32.0, "GPU": 4.0}]).generate_max == 3


@pytest.mark.parametrize(
    ("rows", "engine", "at_once"),
    [
        (256, {"kind": "torch"}, 3),
        (64, {"kind": "torch"}, 3),
        (16, {"kind": "torch"}, 6),
        (4, {"kind": "torch"}, 8),
        (4, {"kind": "torch", "slots": 8}, 4),
        (64, {"kind": "http", "url": "https://a/v1", "model": "m", "concurrency": 256}, 6),
    ],
)
def test_smaller_chunks_mean_more_concurrent_calls(rows, engine, at_once):
    values = job().model_dump(by_alias=True) | {"engine": engine, "output": {"path": "o", "chunk_rows": rows}}
    assert count_concurrent_calls(Job.model_validate(values)) == at_once


def test_a_job_that_needs_more_gpus_than_a_fixed_cluster_has_is_refused():
    with pytest.raises(JobError, match="asks for 2 x 1 GPUs, each time on one node, and the nodes have 1; lower it"):
        compute_pool_sizes(job(generate={"gpus": 1, "min": 2}), [{"CPU": 4.0, "GPU": 1.0}])


def test_a_growing_cluster_may_lack_gpus():
    found = compute_pool_sizes(job(generate={"gpus": 1, "min": 2}, prepare={"max": 64}), [{"CPU": 2.0}], can_grow=True)
    assert found == PoolSizes(prepare_max=64, prepare_cpus=1.0, generate_max=None, generate_cpus=1.0)
    assert compute_pool_sizes(job(), [{"CPU": 2.0}], can_grow=True).generate_max == 1


@pytest.mark.parametrize(
    ("workers", "nodes"),
    [
        ({"prepare": {"memory": "9GiB"}}, [8, 8]),
        ({"generate": {"memory": "9GiB"}}, [8]),
        ({"prepare": {"memory": "4GiB"}, "generate": {"memory": "5GiB"}}, [8]),
        ({"prepare": {"memory": "3GiB", "min": 3}}, [8]),
    ],
)
def test_a_job_that_needs_more_memory_than_a_fixed_cluster_has_is_refused(workers, nodes):
    node_resources = [{"CPU": 4.0, "memory": gib * 2.0**30} for gib in nodes]
    with pytest.raises(
        JobError, match=r"ask for [\d.]+ GiB to start with, .* and the nodes have 8\.0.* GiB; lower them"
    ):
        compute_pool_sizes(job(**workers), node_resources)
    assert compute_pool_sizes(job(**workers), node_resources, can_grow=True)
    assert compute_pool_sizes(job(**workers), [*node_resources, {"CPU": 4.0, "memory": 16 * 2.0**30}])


def node(cpus: int, gpus: int = 0, kind: str | None = None) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} | ({f"accelerator_type:{kind}": 1.0} if kind else {})


def test_a_replica_does_not_span_nodes():
    assert compute_pool_sizes(job(generate={"gpus": 2}), [node(8, 2), node(8, 5)]).generate_max == 3
    assert compute_pool_sizes(job(generate={"gpus": 0.25}), [node(8, 1)]).generate_max == 4
    assert compute_pool_sizes(job(generate={"gpus": 0, "cpus": 8}), [node(4), node(4)]).generate_cpus <= 4


@pytest.mark.parametrize(
    ("generate", "nodes", "found"),
    [
        ({"gpus": 4}, [node(8, 2), node(8, 2)], "1 x 4 GPUs, each time on one node, and the nodes have 2, 2;"),
        ({"gpus": 1, "accelerator": "H100"}, [node(8, 8, "L4")], "1 x 1 GPUs of type H100, .* have none;"),
        ({"gpus": 1, "min": 3}, [node(8, 2)], "3 x 1 GPUs, .* have 2;"),
    ],
)
def test_a_pool_that_would_wait_for_ever_is_refused(generate, nodes, found):
    with pytest.raises(JobError, match=found):
        compute_pool_sizes(job(generate=generate), nodes)


def test_the_drivers_of_a_job_in_shards_share_a_cluster_evenly():
    """Each claims a CPU for itself."""
    nodes = [{"CPU": 18.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]
    alone = compute_pool_sizes(job(generate={"gpus": 1}), nodes)
    shared = compute_pool_sizes(job(generate={"gpus": 1}), nodes, drivers=2)
    assert (alone.generate_max, shared.generate_max) == (8, 4)
    assert 2 * shared.prepare_max <= alone.prepare_max
    assert compute_pool_sizes(job(generate={"gpus": 1}), nodes, drivers=20).generate_max == 1
