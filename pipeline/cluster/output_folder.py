"""Refuses an output in a folder that not every node sees, because answers would be lost on the disks of workers.

The driver writes the job of its run into the output before workers start, so they can look for it.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.context import RunContext
from pipeline.errors import JobError
from pipeline.output.dataset import list_runs
from pipeline.output.store import OutputStore

LOOK_TIMEOUT_S = 60.0


def check_nodes_share_output(context: RunContext) -> None:
    """Look at the output on every other node of the cluster. Object storage is the same everywhere."""
    if "://" in context.job.output.path:
        return
    driver_node = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != driver_node]
    look: Any = ray.remote(find_output_problem)
    looks = [
        look.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
            context
        )
        for node_id in others
    ]
    ready, _ = ray.wait(looks, num_returns=len(looks), timeout=LOOK_TIMEOUT_S) if looks else ([], [])
    for problem in ray.get(ready):
        if problem:
            raise JobError(problem)


def find_output_problem(context: RunContext) -> str | None:
    """What is wrong with the output on this node."""
    path = context.job.output.path
    if "://" in path or context.run_id in list_runs(OutputStore(path), "job"):
        return None
    node = ray.util.get_node_ip_address()
    return (
        f"output.path: node {node} does not see the folder {path} of this run; name object storage (s3://...), "
        "or a folder on a disk that all nodes share"
    )
