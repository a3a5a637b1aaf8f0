"""Pools of replicas on several nodes: what becomes of a run whose replicas are killed, and how a pool grows."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.builtin.random_checkpoint import write_random_checkpoint

log = logging.getLogger(__name__)
BY_HAND = pytest.mark.skipif(not os.environ.get("VLBATCH_CHAOS"), reason="takes minutes: VLBATCH_CHAOS=1 runs it")
REPLICA, RANK = "ray::MapWorker(MapBatches(GenerateWorker))", "pipeline.model.engines.torch.tp_worker"


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of several nodes on this machine, which runs join and leave as they find it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder = tempfile.mkdtemp(prefix="vl")
    how = {"include_dashboard": False, "object_store_memory": 150 * 10**6}
    made = Cluster(initialize_head=True, head_node_args={**how, "num_cpus": 1, "temp_dir": folder})
    yield lambda **more: made.add_node(**how, **more), made
    ray.shutdown()
    made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def found(words: str) -> list[psutil.Process]:
    """Of this test's own: others on the machine may run replicas too."""
    there = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may end while it is looked at
            if words in " ".join(one.cmdline()):
                there.append(one)
    return there


@BY_HAND
def test_rows_are_answered_once_while_ranks_and_a_node_are_killed(workspace, nodes, tmp_path):
    add, made = nodes
    places = [add(num_cpus=3) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    workspace.write_manifest(workspace.draw_images(300))
    told: list[str] = []

    def strike() -> None:
        for parts, what, blow in (
            (5, "rank 1", lambda: found(RANK)[0].kill()),
            (15, "rank 0", lambda: found(REPLICA)[0].kill()),
            (28, "a node", lambda: made.remove_node(places[0], allow_graceful=False)),
        ):
            while len(workspace.list_parts()) < parts or len(found(RANK)) < 2:
                time.sleep(0.2)
            told.append(f"{what} at {len(workspace.list_parts())} of 50 parts")
            blow()

    striker = Thread(target=strike, daemon=True)
    striker.start()
    code = workspace.run_job(
        runner="ray",
        model={"weights": str(write_random_checkpoint(tmp_path / "model", "qwen3_vl")), "tensor_parallel": 2},
        engine={"kind": "torch", "slots": 4, "kv_tokens": 2000, "hang_s": 60},
        answer={"max_new_tokens": 16},
        media={"min_pixels": 4096, "max_pixels": 8192},
        workers={"generate": {"min": 2, "max": 2, "cpus": 2}, "prepare": {"max": 1}},
        output={"chunk_rows": 6},
    )
    log.info("%s %s", told, workspace.messages)
    assert len(told) == 3
    assert code == 0
    assert Counter(workspace.list_answered_ids()) == Counter(f"r{number}" for number in range(300))
    assert workspace.read_dead_letters() == []
    until(lambda: not found(RANK))


@BY_HAND
def test_a_pool_grows_under_load_and_is_gone_when_its_input_ends(workspace, nodes):
    add, made = nodes
    add(num_cpus=6)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    workspace.write_manifest(workspace.draw_images(480))
    sizes: list[int] = []
    ended: list[bool] = []

    def watch() -> None:
        while not ended:
            sizes.append(len(found(REPLICA)))
            time.sleep(0.5)

    watcher = Thread(target=watch)
    watcher.start()
    code = workspace.run_job(
        runner="ray",
        engine={"kind": "scripted", "default": "seen {id}", "slots": 4, "delay_ms": 1500},
        workers={"generate": {"min": 1, "max": 4, "cpus": 1}, "prepare": {"max": 1}},
        output={"chunk_rows": 4},
    )
    until(lambda: not found(REPLICA))
    ended.append(True)
    watcher.join()
    log.info("%s %s", sizes, workspace.messages)
    assert code == 0
    assert max(sizes) == 4
    assert sorted(set(sizes), key=sizes.index)[:2] == [0, 1]
    assert Counter(workspace.list_answered_ids()) == Counter(f"r{number}" for number in range(480))


def until(there: Callable[[], object]) -> None:
    for _ in range(600):
        if there():
            return
        time.sleep(0.1)
    raise AssertionError("not in a minute")
