"""Every overlay renders to resources that an API server with KubeRay accepts, and a typo in any key is found."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipeline.command_line.parser import build_parser
from pipeline.job.job_loader import parse_job
from pipeline.run.shards import Shard
from tests.infra import strict
from tests.infra.overlays import (
    CLOUDS,
    KUBERAY,
    MODES,
    find_problems,
    get_cluster_spec,
    get_pod_templates,
    render_overlay,
    run_kustomize,
)

pytestmark = pytest.mark.process

FREE_KEYS = {"labels", "annotations", "data", "nodeSelector", "rayStartParams", "requests", "limits", "matchLabels"}


def list_key_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List the paths of all keys that the schemas define."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(key, str):
            yield (*path, key)
        if key not in FREE_KEYS:
            yield from list_key_paths(inner, (*path, key))


def rename_key(document: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    out = copy.deepcopy(document)
    parent: Any = out
    for key in path[:-1]:
        parent = parent[key]
    parent[f"{path[-1]}x"] = parent.pop(path[-1])
    return out


@pytest.mark.parametrize("overlay", sorted(path.name for path in (KUBERAY / "overlays").iterdir()))
def test_the_api_server_accepts_every_overlay(overlay):
    documents = render_overlay(overlay)
    assert [(document["kind"], problem) for document in documents for problem in find_problems(document)] == []
    kinds = {document["kind"] for document in documents}
    assert kinds & {*strict.KINDS} | (kinds & {"CronJob"})


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_cloud_works_with_every_way_to_run(cloud, tmp_path):
    for mode in MODES:
        parts = [f"../components/{name}" for name in (cloud, "shared-cache", mode)]
        shutil.copytree(KUBERAY, tmp_path / mode)
        overlay = tmp_path / mode / "mine"
        overlay.mkdir()
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../base"], "components": parts}))
        documents = run_kustomize(overlay)
        assert [(document["kind"], problem) for document in documents for problem in find_problems(document)] == []
        accounts = [document for document in documents if document["kind"] == "ServiceAccount"]
        assert [bool(account["metadata"]["annotations"]) for account in accounts] == [True, True]
        specs = [*filter(None, map(get_cluster_spec, documents))]
        assert len(specs) == (4 if mode == "shards" else 1)
        templates = [template for document in documents for template in get_pod_templates(document).values()]
        assert all(template["spec"]["nodeSelector"]["kubernetes.io/arch"] for template in templates)
        for spec in specs:
            assert all(group["template"]["spec"]["nodeSelector"] for group in spec["workerGroupSpecs"][:1])
            volumes = spec["headGroupSpec"]["template"]["spec"]["volumes"]
            caches = [volume for volume in volumes if volume["name"] == "cache"]
            assert caches == [{"name": "cache", "persistentVolumeClaim": {"claimName": "vlbatch-cache"}}]


def test_each_shard_has_a_job_that_is_the_one_job_but_for_its_shard():
    (whole,) = (document for document in render_overlay("once") if document["kind"] == "RayJob")
    jobs = [document for document in render_overlay("shards") if document["kind"] == "RayJob"]
    assert [job["metadata"]["name"] for job in jobs] == [f"vlbatch-shard-{number}" for number in (1, 2, 3, 4)]
    for number, job in enumerate(jobs, 1):
        command = job["spec"].pop("entrypoint").split()
        assert command == [*whole["spec"]["entrypoint"].split(), f"--shard={number}/4"]
        options = build_parser(None).parse_args(command[command.index("pipeline") + 1 :])
        assert options.shard == Shard(number, 4)
        assert job["spec"] == {name: value for name, value in whole["spec"].items() if name != "entrypoint"}


@pytest.mark.parametrize(("overlay", "kind"), [("nightly", "RayCronJob"), ("nightly-cronjob", "CronJob")])
def test_a_typo_in_any_key_is_found(overlay, kind):
    (document,) = (document for document in render_overlay(overlay) if document["kind"] == kind)
    paths = {tuple(key for key in path if isinstance(key, str)): path for path in list_key_paths(document)}
    chosen_paths = [path for path in paths.values() if path[0] == "spec"]
    if "ALL_TYPOS" not in os.environ:  # all of them take minutes, so test one key in six
        chosen_paths = sorted(chosen_paths, key=str)[::6]
    assert len(chosen_paths) > 5
    assert [path for path in chosen_paths if not find_problems(rename_key(document, path))] == []


def test_a_wrong_type_is_found():
    (document,) = (document for document in render_overlay("once") if document["kind"] == "RayJob")
    document = copy.deepcopy(document)
    document["spec"]["backoffLimit"] = "three"
    document["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] = "v3"
    message = "\n".join(find_problems(document))
    assert "backoffLimit" in message
    assert "'v3' is not one of" in message


def test_no_overlay_has_a_value_that_only_the_operator_rejects():
    for overlay in ("once", "nightly", "acme"):
        for document in render_overlay(overlay):
            if document["kind"] in strict.KINDS:
                spec = document["spec"].get("jobTemplate", document["spec"])
                assert (
                    not {"deletionStrategy", "activeDeadlineSeconds"} & spec.keys()
                )  # beside shutdownAfterJobFinishes


def test_every_reference_names_an_existing_resource():
    for overlay in (*MODES, "acme"):
        documents = render_overlay(overlay)
        resources = {(document["kind"], document["metadata"]["name"]) for document in documents}
        text = yaml.safe_dump_all(documents)
        assert "local-config" not in text
        for document in documents:
            for path in list_key_paths(document):
                value: Any = document
                for key in path:
                    value = value[key]
                if path[-1] in ("configMapRef", "configMap"):
                    assert ("ConfigMap", value["name"]) in resources
                if path[-1] == "serviceAccountName":
                    assert ("ServiceAccount", value) in resources
                if path[-1] == "priorityClassName":
                    assert ("PriorityClass", value) in resources


def test_no_manifest_holds_a_secret_and_credentials_are_references():
    for overlay in (*MODES, "acme"):
        documents = render_overlay(overlay)
        assert "Secret" not in {document["kind"] for document in documents}
        for spec in filter(None, map(get_cluster_spec, documents)):
            groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
            for container in (group["template"]["spec"]["containers"][0] for group in groups):
                assert {"secretRef": {"name": "vlbatch-credentials", "optional": True}} in container["envFrom"]


@pytest.mark.parametrize("overlay", ["nightly", "acme"])
def test_the_job_of_the_config_map_is_valid_with_its_settings(overlay):
    maps = {
        document["metadata"]["name"]: document["data"]
        for document in render_overlay(overlay)
        if document["kind"] == "ConfigMap"
    }
    job = parse_job(maps["vlbatch-jobs"]["nightly.yaml"], environment=maps["vlbatch-settings"])
    assert job.output.path.startswith("s3://acme/labels/")


def test_pods_live_longer_than_the_grace_period_of_a_stopped_run():
    (document,) = (document for document in render_overlay("once") if document["kind"] == "RayJob")
    grace_s = int(yaml.safe_load(document["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    spec = document["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > grace_s
