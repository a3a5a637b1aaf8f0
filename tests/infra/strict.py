"""Validates KubeRay's resources against its CRDs as strictly as an API server: an unknown field is an error.

Defaults are filled in first, as the server does. The CRDs' CEL rules and the operator's checks in Go are not covered.
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
def load_schema(kind: str) -> Any:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("set KUBERAY_CRDS to a folder with KubeRay's ray.io_*.yaml.gz (ray-operator/config/crd/bases)")
    text = gzip.decompress((Path(folder) / f"ray.io_{KINDS[kind]}.yaml.gz").read_bytes())
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    served = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    served["properties"]["metadata"] = {"type": "object"}
    return forbid_unknown_fields(served)


def forbid_unknown_fields(schema: Any) -> Any:
    if isinstance(schema, list):
        return [forbid_unknown_fields(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: value for key, value in schema.items() if key not in ("format", "description")}
    if out.pop("x-kubernetes-int-or-string", False):
        out.pop("anyOf", None)
        out["type"] = ["integer", "string"]
    if "properties" in out:
        out["properties"] = {name: forbid_unknown_fields(inner) for name, inner in out["properties"].items()}
        if not out.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = forbid_unknown_fields(out[key])
    return out


def fill_defaults(value: Any, schema: Any) -> Any:
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [fill_defaults(item, schema["items"]) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    filled = {name: inner["default"] for name, inner in properties.items() if "default" in inner} | value
    return {name: fill_defaults(inner, properties.get(name, {})) for name, inner in filled.items()}


def find_problems(document: Any) -> list[str]:
    """List what the API server would reject in a RayCluster, RayJob or RayCronJob."""
    strict_schema = load_schema(document["kind"])
    errors = jsonschema.Draft202012Validator(strict_schema).iter_errors(fill_defaults(document, strict_schema))
    return [f"{error.json_path}: {error.message}" for error in errors]
