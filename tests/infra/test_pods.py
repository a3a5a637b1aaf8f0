"""The pods of every overlay: what they may do, whom they reach, and what they take of a node."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from pipeline.command_line.parser import build_parser
from tests.infra import strict
from tests.infra.overlays import MODES, get_pod_templates, get_resources, list_pod_templates, render_overlay

pytestmark = pytest.mark.process

LOWEST_PRIORITY = -10  # Cluster Autoscaler adds no node for a pod below this
RUN_ARGUMENTS = ("run", "/etc/vlbatch/nightly.yaml", "--allow-errors", "--stop-when-refused")
OVERLAYS = (*MODES, "acme")


def is_selected(selector: dict[str, Any], template: dict[str, Any], role: str) -> bool:
    """Whether a selector takes a pod, with the label that KubeRay adds."""
    node_type = {"submitter": {}}.get(role, {"ray.io/node-type": "head" if role == "head" else "worker"})
    return selector["matchLabels"].items() <= {**template["metadata"]["labels"], **node_type}.items()


def can_reach(overlay: str, role: str, address: str, port: int) -> bool:
    """Whether the network policies of an overlay let a pod reach an address outside of the cluster."""
    (template,) = (template for name, template in list_pod_templates(overlay) if name == role)
    specs = [policy["spec"] for policy in get_resources(overlay, "NetworkPolicy")]
    rules = [rule for spec in specs if is_selected(spec["podSelector"], template, role) for rule in spec["egress"]]
    rules = [rule for rule in rules if port in [entry["port"] for entry in rule.get("ports", [{"port": port}])]]
    blocks = [peer["ipBlock"] for rule in rules for peer in rule["to"] if "ipBlock" in peer]
    return any(
        ipaddress.ip_address(address) in ipaddress.ip_network(block["cidr"])
        and not any(ipaddress.ip_address(address) in ipaddress.ip_network(part) for part in block.get("except", ()))
        for block in blocks
    )


@pytest.mark.parametrize("overlay", ["once", "nightly", "acme"])
def test_a_job_that_cannot_run_is_stopped_and_every_ended_cluster_is_deleted(overlay):
    (document,) = (document for document in render_overlay(overlay) if document["kind"] in strict.KINDS)
    spec = document["spec"].get("jobTemplate", document["spec"])
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0
    words = tuple(spec["entrypoint"].split()[3:])
    assert words == RUN_ARGUMENTS
    assert build_parser(None).parse_args(words).stop_when_refused


def test_the_autoscaler_adds_nodes_for_every_pod_and_evicts_the_head_last():
    for overlay in OVERLAYS:
        values = {item["metadata"]["name"]: item["value"] for item in get_resources(overlay, "PriorityClass")}
        for role, template in list_pod_templates(overlay):
            assert values[template["spec"]["priorityClassName"]] == (LOWEST_PRIORITY if role in ("gpu", "cpu") else 0)


def test_only_the_head_has_a_token_for_the_api_server():
    for role, template in list_pod_templates():
        spec = template["spec"]
        assert (spec.get("automountServiceAccountToken", True), spec.get("serviceAccountName")) == {
            "head": (True, "vlbatch"),
            "submitter": (False, None),
        }.get(role, (False, "vlbatch-worker"))


def test_every_pod_bounds_its_disk_and_its_temporary_volumes_fit_into_the_bound():
    for role, template in list_pod_templates("once", "nightly-cronjob"):
        (container,) = template["spec"]["containers"]
        requested, limit = (
            int(container["resources"][key]["ephemeral-storage"].removesuffix("Gi")) for key in ("requests", "limits")
        )
        volumes = [volume["emptyDir"] for volume in template["spec"]["volumes"] if "emptyDir" in volume]
        sizes = [int(volume["sizeLimit"].removesuffix("Gi")) for volume in volumes if volume.get("medium") != "Memory"]
        assert 0 < requested <= limit, role
        assert sizes
        assert sum(sizes) <= limit, role


def test_every_container_has_a_read_only_root_and_a_place_for_temporary_files():
    for role, template in list_pod_templates():
        spec = template["spec"]
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        assert spec["nodeSelector"]["kubernetes.io/arch"] == "amd64"
        assert spec.get("shareProcessNamespace", False) == (role != "submitter")


def test_network_policies_let_only_the_operator_and_prometheus_in_to_any_pod():
    for overlay in OVERLAYS:
        (policy,) = (
            item["spec"]
            for item in get_resources(overlay, "NetworkPolicy")
            if item["spec"]["policyTypes"] == ["Ingress", "Egress"]
        )
        for role, template in list_pod_templates(overlay):
            assert is_selected(policy["podSelector"], template, role)
        strangers = {
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]: [entry["port"] for entry in rule["ports"]]
            for rule in policy["ingress"]
            for peer in rule["from"]
            if "namespaceSelector" in peer
        }
        assert strangers == {"kuberay-operator": [8265], "prometheus": [8080]}


def test_workers_reach_public_addresses_but_no_metadata_server_or_private_network():
    reachable = {
        (role, address): can_reach("once", role, address, 443)
        for role in ("head", "gpu", "cpu")
        for address in ("52.216.8.1", "2600:1fa0::1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "fd00:ec2::254")
    }
    assert {key for key, value in reachable.items() if value} == {
        *((role, address) for role in ("head", "gpu", "cpu") for address in ("52.216.8.1", "2600:1fa0::1")),
        *(("head", address) for address in ("10.0.0.1", "192.168.1.1", "fd00:ec2::254")),  # the API server
    }
    assert not can_reach("once", "head", "10.0.0.1", 22)


def test_a_drain_waits_for_the_head_and_for_no_worker():
    for overlay in OVERLAYS:
        (budget,) = get_resources(overlay, "PodDisruptionBudget")
        for role, template in list_pod_templates(overlay):
            assert is_selected(budget["spec"]["selector"], template, role) == (role == "head")


def test_everything_of_an_overlay_is_in_its_namespace():
    for overlay in OVERLAYS:
        namespaced = [item for item in render_overlay(overlay) if item["kind"] != "PriorityClass"]
        namespaces = {item["metadata"].get("namespace") for item in namespaced}
        assert namespaces == {"labelling" if overlay == "acme" else "vlbatch"}, overlay


def test_prometheus_finds_the_pods_in_the_namespace_of_the_overlay():
    (monitor,) = get_resources("acme", "PodMonitor")
    (cron,) = get_resources("acme", "RayCronJob")
    assert monitor["metadata"]["namespace"] == cron["metadata"]["namespace"]
    assert "namespaceSelector" not in monitor["spec"]
    wanted = dict(monitor["spec"]["selector"]["matchLabels"])
    assert wanted.pop("ray.io/is-ray-node") == "yes"  # KubeRay adds it
    for role, template in get_pod_templates(cron).items():
        assert role == "submitter" or wanted.items() <= template["metadata"]["labels"].items()
