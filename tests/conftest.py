"""Environment variables and fixtures of every test, set before Ray, torch or the hub are imported."""

import os
from importlib.util import find_spec

import pytest

from pipeline import retry_policy
from tests.workspace import ray_environment, s3_environment, workspace

__all__ = ["ray_environment", "s3_environment", "workspace"]

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

if find_spec("vllm"):  # vLLM needs torchvision; our own tests hide it from transformers
    from transformers.utils import is_torchvision_available

    is_torchvision_available()


@pytest.fixture
def short_waits(monkeypatch):
    """Retries wait for milliseconds; the number of attempts stays."""
    for name in ("MEDIA_POLICIES", "OUTPUT_POLICIES"):
        policies = getattr(retry_policy, name)
        fast_policies = {
            kind: policy._replace(first_wait_s=0.01, longest_wait_s=0.02) for kind, policy in policies.items()
        }
        monkeypatch.setattr(retry_policy, name, fast_policies)
