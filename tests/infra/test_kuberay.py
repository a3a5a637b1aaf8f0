"""Every overlay renders to what an API server with KubeRay would take, and a typo anywhere in it would not pass."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipeline.job.job_loader import parse_job
from tests.infra import strict

KUBERAY = Path(__file__).parents[2] / "infra/kuberay"
MODES = ("once", "interactive", "nightly", "nightly-cronjob")
CLOUDS = ("aws", "gcp", "azure")
FREE = {"labels", "annotations", "data", "nodeSelector", "rayStartParams", "requests", "limits", "matchLabels"}
KUBERNETES = "1.32"


def kustomize(folder: Path) -> list[dict[str, Any]]:
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("install kubectl or kustomize to render the overlays")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    return kustomize(KUBERAY / "overlays" / overlay)


def problems(document: dict[str, Any]) -> list[str]:
    if document["kind"] in strict.KINDS:
        return strict.problems(document)
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error.message)]
    return []


def cluster(document: dict[str, Any]) -> dict[str, Any] | None:
    """The RayCluster's spec in whichever of Ray's kinds."""
    spec = document["spec"] if document["kind"] in strict.KINDS else {}
    spec = spec.get("jobTemplate", spec)
    found: dict[str, Any] | None = spec.get("rayClusterSpec", spec) or None
    return found


def keys(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key that the schemas know, by its place."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(key, str):
            yield (*at, key)
        if key not in FREE:
            yield from keys(inner, (*at, key))


def renamed(document: dict[str, Any], place: tuple[Any, ...]) -> dict[str, Any]:
    out = copy.deepcopy(document)
    inside: Any = out
    for key in place[:-1]:
        inside = inside[key]
    inside[f"{place[-1]}x"] = inside.pop(place[-1])
    return out


@pytest.mark.parametrize("overlay", sorted(path.name for path in (KUBERAY / "overlays").iterdir()))
def test_an_overlay_is_what_the_api_server_takes(overlay):
    documents = rendered(overlay)
    assert [(each["kind"], problem) for each in documents for problem in problems(each)] == []
    kinds = {each["kind"] for each in documents}
    assert kinds & {*strict.KINDS} | (kinds & {"CronJob"})


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_cloud_goes_with_every_way_to_run(cloud, tmp_path):
    for mode in MODES:
        parts = [f"../components/{name}" for name in (cloud, "shared-cache", mode)]
        shutil.copytree(KUBERAY, tmp_path / mode)
        overlay = tmp_path / mode / "mine"
        overlay.mkdir()
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../base"], "components": parts}))
        documents = kustomize(overlay)
        assert [(each["kind"], problem) for each in documents for problem in problems(each)] == []
        (account,) = (each for each in documents if each["kind"] == "ServiceAccount")
        assert account["metadata"]["annotations"]
        (spec,) = filter(None, map(cluster, documents))
        assert all(group["template"]["spec"]["nodeSelector"] for group in spec["workerGroupSpecs"][:1])
        caches = [
            volume for volume in spec["headGroupSpec"]["template"]["spec"]["volumes"] if volume["name"] == "cache"
        ]
        assert caches == [{"name": "cache", "persistentVolumeClaim": {"claimName": "vlbatch-cache"}}]


@pytest.mark.parametrize(("overlay", "kind"), [("nightly", "RayCronJob"), ("nightly-cronjob", "CronJob")])
def test_a_typo_in_any_key_is_found(overlay, kind):
    (document,) = (each for each in rendered(overlay) if each["kind"] == kind)
    places = {tuple(key for key in place if isinstance(key, str)): place for place in keys(document)}
    chosen = [place for place in places.values() if place[0] == "spec"]
    if "ALL_TYPOS" not in os.environ:  # all of them take minutes: a sixth, of all depths
        chosen = sorted(chosen, key=str)[::6]
    assert len(chosen) > 5
    assert [place for place in chosen if not problems(renamed(document, place))] == []


def test_a_wrong_type_is_found():
    (document,) = (each for each in rendered("once") if each["kind"] == "RayJob")
    document = copy.deepcopy(document)
    document["spec"]["backoffLimit"] = "three"
    document["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] = "v3"
    said = "\n".join(problems(document))
    assert "backoffLimit" in said
    assert "'v3' is not one of" in said


def test_what_the_operator_refuses_though_the_schema_allows_it_is_not_there():
    for overlay in ("once", "nightly", "acme"):
        for document in rendered(overlay):
            if document["kind"] not in strict.KINDS:
                continue
            spec = document["spec"].get("jobTemplate", document["spec"])
            policies = {rule["policy"] for rule in spec["deletionStrategy"]["deletionRules"]}
            assert "DeleteWorkers" not in policies  # not with an autoscaler
            assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds"} & spec.keys()


def test_nothing_refers_to_what_is_not_there():
    for overlay in (*MODES, "acme"):
        documents = rendered(overlay)
        there = {(each["kind"], each["metadata"]["name"]) for each in documents}
        text = yaml.safe_dump_all(documents)
        assert "local-config" not in text
        for document in documents:
            for place in keys(document):
                value: Any = document
                for key in place:
                    value = value[key]
                if place[-1] in ("configMapRef", "configMap"):
                    assert ("ConfigMap", value["name"]) in there
                if place[-1] == "serviceAccountName":
                    assert ("ServiceAccount", value) in there
                if place[-1] == "priorityClassName":
                    assert ("PriorityClass", value) in there


def test_no_manifest_holds_a_secret_and_credentials_come_by_reference():
    for overlay in (*MODES, "acme"):
        documents = rendered(overlay)
        assert "Secret" not in {each["kind"] for each in documents}
        for spec in filter(None, map(cluster, documents)):
            groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
            for container in (group["template"]["spec"]["containers"][0] for group in groups):
                assert {"secretRef": {"name": "vlbatch-credentials", "optional": True}} in container["envFrom"]


@pytest.mark.parametrize("overlay", ["nightly", "acme"])
def test_the_job_in_the_config_map_is_one_that_can_run_with_its_settings(overlay):
    maps = {each["metadata"]["name"]: each["data"] for each in rendered(overlay) if each["kind"] == "ConfigMap"}
    job = parse_job(maps["vlbatch-jobs"]["nightly.yaml"], environment=maps["vlbatch-settings"])
    assert job.output.path.startswith("s3://acme/labels/")


def test_a_stopped_run_has_its_grace_before_its_pod_ends():
    (document,) = (each for each in rendered("once") if each["kind"] == "RayJob")
    grace_s = int(yaml.safe_load(document["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    spec = document["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > grace_s
