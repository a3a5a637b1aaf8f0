"""Environment variables, options and fixtures of every test, set before Ray, torch or the hub are imported."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline import retry_policy
from pipeline.media import decode
from tests.expected_skips import find_unexpected_skips
from tests.shared_decoder import borrow_decoder, close_idle_decoders
from tests.workspace import ray_environment, s3_environment, workspace

__all__ = ["ray_environment", "s3_environment", "workspace"]

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so named by Ray, whose default of 15 starves its workers here
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.set_threshold(50_000, 20, 50)  # by default, collections take a fifth of the time of tests

if find_spec("vllm"):
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # it starts in 6 s instead of 40
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # vLLM needs torchvision; our own tests hide it from transformers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--check-skips", action="store_true", help="fail where a test is skipped unexpectedly")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Only test files hold tests: pytest would import the others to look for examples in docstrings."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first and those with fast ones last, so that parallel workers end together."""

    def rank_item(item: pytest.Item) -> int:
        return 0 if item.get_closest_marker("slow") else 1 if item.get_closest_marker("process") else 2

    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = min(rank_item(item), ranks.get(item.path, 2))
    items.sort(key=lambda item: ranks[item.path])


def pytest_collection_finish() -> None:
    """What was imported stays, so no collection has to look at it."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--check-skips"):
        reports = terminalreporter.stats.get("skipped", [])
        for line in find_unexpected_skips(report.longrepr[2].removeprefix("Skipped: ") for report in reports):
            terminalreporter.write_line(f"unexpected: {line}", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--check-skips"):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reports = reporter.stats.get("skipped", []) if reporter else []
        if find_unexpected_skips(report.longrepr[2].removeprefix("Skipped: ") for report in reports):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def share_decoders(monkeypatch):
    """Runs in this process take over the decoder's process of an earlier run with the same limits."""
    monkeypatch.setattr(decode, "DecoderClient", borrow_decoder)


@pytest.fixture(autouse=True, scope="session")
def close_shared_decoders():
    yield
    close_idle_decoders()


@pytest.fixture(autouse=True)
def skip_disk_flushes(monkeypatch):
    """Commits of this process do not wait for the disk: no test cuts the power. Tests of flushes replace `os.fsync`."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def short_waits(monkeypatch):
    """Retries wait for milliseconds; the number of attempts stays."""
    for name in ("MEDIA_POLICIES", "OUTPUT_POLICIES"):
        policies = getattr(retry_policy, name)
        fast_policies = {
            kind: policy._replace(first_wait_s=0.01, longest_wait_s=0.02) for kind, policy in policies.items()
        }
        monkeypatch.setattr(retry_policy, name, fast_policies)
