"""Counts the attempts of a RayJob: each is a run of its own on a new cluster, and only the output knows the others."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.output.dataset import list_runs, read_run_document
from pipeline.output.store import OutputStore
from pipeline.output.thread_map import map_in_threads

RECENT_RUNS = 100  # an attempt follows the one before within minutes


def number_attempt(store: OutputStore, submission: Mapping[str, str]) -> dict[str, int]:
    """Which attempt of its RayJob a run is; empty if it is not part of one."""
    ray_job = submission.get("ray_job")
    if ray_job is None:
        return {}
    plans = map_in_threads(
        lambda run_id: read_run_document(store, run_id, "plan"), list_runs(store, "plan")[:RECENT_RUNS]
    )
    return {"attempt": 1 + sum(plan.get("ray_job") == ray_job for plan in plans)}
