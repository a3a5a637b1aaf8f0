"""KubeRay's CRDs -> JSON Schemas as strict as an API server that is asked to be: unknown fields are errors.

Defaults are filled first, as the server does; what the CRDs say in CEL and the operator checks in Go is not here.
"""

from __future__ import annotations

import gzip
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}


@cache
def schema(kind: str) -> Any:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("set KUBERAY_CRDS to a folder with KubeRay's ray.io_*.yaml.gz (ray-operator/config/crd/bases)")
    text = gzip.decompress((Path(folder) / f"ray.io_{KINDS[kind]}.yaml.gz").read_bytes())
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    served = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    served["properties"]["metadata"] = {"type": "object"}
    return closed(served)


def closed(schema: Any) -> Any:
    """The same with nothing allowed that is not named."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: value for key, value in schema.items() if key not in ("format", "description")}
    if out.pop("x-kubernetes-int-or-string", False):
        out.pop("anyOf", None)
        out["type"] = ["integer", "string"]
    if "properties" in out:
        out["properties"] = {name: closed(inner) for name, inner in out["properties"].items()}
        if not out.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = closed(out[key])
    return out


def defaulted(value: Any, schema: Any) -> Any:
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [defaulted(each, schema["items"]) for each in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties", {})
    filled = {name: inner["default"] for name, inner in known.items() if "default" in inner} | value
    return {name: defaulted(each, known.get(name, {})) for name, each in filled.items()}


def problems(document: Any) -> list[str]:
    """What the API server would refuse in one of Ray's kinds."""
    rules = schema(document["kind"])
    found = jsonschema.Draft202012Validator(rules).iter_errors(defaulted(document, rules))
    return [f"{error.json_path}: {error.message}" for error in found]
