"""Renders the overlays, validates what they render to, and finds the pods in it."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.infra import strict

KUBERAY = Path(__file__).parents[2] / "infra/kuberay"
MODES = ("once", "shards", "interactive", "nightly", "nightly-cronjob")
CLOUDS = ("aws", "gcp", "azure")
KUBERNETES_VERSION = "1.32"
UNCHECKED_GROUPS = ("monitoring.coreos.com",)  # of Prometheus' operator, whose schemas are not here


def run_kustomize(folder: Path) -> list[dict[str, Any]]:
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("install kubectl or kustomize to render the overlays")
    process = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return list(yaml.safe_load_all(process.stdout))


@cache
def render_overlay(overlay: str) -> list[dict[str, Any]]:
    return run_kustomize(KUBERAY / "overlays" / overlay)


def find_problems(document: dict[str, Any]) -> list[str]:
    if document["kind"] in strict.KINDS:
        return strict.find_problems(document)
    if document["apiVersion"].startswith(UNCHECKED_GROUPS):
        return []
    try:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error.message)]
    return []


def get_cluster_spec(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the RayCluster's spec inside a RayCluster, RayJob or RayCronJob."""
    spec = document["spec"] if document["kind"] in strict.KINDS else {}
    spec = spec.get("jobTemplate", spec)
    cluster_spec: dict[str, Any] | None = spec.get("rayClusterSpec", spec) or None
    return cluster_spec


def get_pod_templates(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pod templates in a document by role: head, gpu, cpu, submitter."""
    if document["kind"] == "CronJob":
        return {"submitter": document["spec"]["jobTemplate"]["spec"]["template"]}
    if document["kind"] not in strict.KINDS:
        return {}
    cluster_spec = get_cluster_spec(document) or {}
    templates = {group["groupName"]: group["template"] for group in cluster_spec["workerGroupSpecs"]}
    templates["head"] = cluster_spec["headGroupSpec"]["template"]
    job_spec = document["spec"].get("jobTemplate", document["spec"])
    if "submitterPodTemplate" in job_spec:
        templates["submitter"] = job_spec["submitterPodTemplate"]
    return templates


def list_pod_templates(*overlays: str) -> list[tuple[str, dict[str, Any]]]:
    """List the pod templates of overlays with their roles."""
    return [
        item
        for overlay in overlays or (*MODES, "acme")
        for document in render_overlay(overlay)
        for item in get_pod_templates(document).items()
    ]


def get_resources(overlay: str, kind: str) -> list[dict[str, Any]]:
    return [document for document in render_overlay(overlay) if document["kind"] == kind]
