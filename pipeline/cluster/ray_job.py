"""Tells which Ray job this process is the driver of, and which attempt of which RayJob that is."""

from __future__ import annotations

import json
from collections.abc import Mapping

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job
CLUSTER_NAME_VARIABLE = "RAY_CLUSTER_NAME"  # KubeRay sets it in every pod


def read_submission_id(environment: Mapping[str, str]) -> str | None:
    """None if nobody submitted this process to a cluster."""
    config: dict[str, dict[str, str]] = json.loads(environment.get(JOB_CONFIG_VARIABLE) or "{}")
    return config.get("metadata", {}).get("job_submission_id")


def describe_submission(environment: Mapping[str, str]) -> dict[str, str]:
    """The id of the Ray job, and the name of the RayJob that it is an attempt of.

    KubeRay names the Ray job and the cluster of each attempt after the RayJob, with a random end.
    """
    submission_id = read_submission_id(environment)
    if submission_id is None:
        return {}
    name = submission_id.rpartition("-")[0]
    is_attempt = name and name == environment.get(CLUSTER_NAME_VARIABLE, "").rpartition("-")[0]
    return {"submission": submission_id, **({"ray_job": name} if is_attempt else {})}
