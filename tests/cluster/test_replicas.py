"""Pools of replicas on several nodes: replicas that are killed, and a pool that grows."""

from __future__ import annotations

import logging
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
from pipeline.cluster.ray_session import omit_unused_services, require_random_token

log = logging.getLogger(__name__)
pytestmark = pytest.mark.slow
REPLICA, RANK = "ray::GenerateWorker", "pipeline.model.engines.torch.tp_worker"


@pytest.fixture
def nodes(monkeypatch):
    """A function that adds a node to a cluster on this machine, and the cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tempfile.mkdtemp(prefix="vl")
    options = {"include_dashboard": False, "object_store_memory": 150 * 10**6}
    with require_random_token(), omit_unused_services():
        cluster = Cluster(initialize_head=True, head_node_args={**options, "num_cpus": 1, "temp_dir": folder})
        yield lambda **more: cluster.add_node(**options, **more), cluster
        ray.shutdown()
        cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def find_processes(title: str) -> list[psutil.Process]:
    """The children of this test with such a command line. Other replicas may run on the machine."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have ended meanwhile
            if title in " ".join(process.cmdline()):
                processes.append(process)
    return processes


def test_rows_are_answered_once_while_ranks_and_a_node_are_killed(workspace, nodes, tmp_path):
    add_node, cluster = nodes
    worker_nodes = [add_node(num_cpus=3) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    workspace.write_manifest(workspace.draw_images(300))
    events: list[str] = []

    def kill_processes() -> None:
        for part_count, target, kill in (
            (5, "rank 1", lambda: find_processes(RANK)[0].kill()),
            (15, "rank 0", lambda: find_processes(REPLICA)[0].kill()),
            (28, "a node", lambda: cluster.remove_node(worker_nodes[0], allow_graceful=False)),
        ):
            while len(workspace.list_parts()) < part_count or len(find_processes(RANK)) < 2:
                time.sleep(0.2)
            events.append(f"{target} at {len(workspace.list_parts())} of 50 parts")
            kill()

    killer = Thread(target=kill_processes, daemon=True)
    killer.start()
    code = workspace.run_job(
        runner="ray",
        model={"weights": str(write_random_checkpoint(tmp_path / "model", "qwen3_vl")), "tensor_parallel": 2},
        engine={"kind": "torch", "slots": 4, "kv_tokens": 2000, "hang_s": 60},
        answer={"max_new_tokens": 16},
        media={"min_pixels": 4096, "max_pixels": 8192},
        workers={"generate": {"min": 2, "max": 2, "cpus": 2}, "prepare": {"max": 1}},
        output={"chunk_rows": 6},
    )
    log.info("%s %s", events, workspace.messages)
    assert len(events) == 3
    assert code == 0
    assert Counter(workspace.list_answered_ids()) == Counter(f"r{number}" for number in range(300))
    assert workspace.read_dead_letters() == []
    wait_until(lambda: not find_processes(RANK))


def test_a_pool_grows_under_load_and_is_gone_when_its_input_ends(workspace, nodes):
    add_node, cluster = nodes
    add_node(num_cpus=6)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    workspace.write_manifest(workspace.draw_images(480))
    sizes: list[int] = []
    ended: list[bool] = []

    def watch() -> None:
        while not ended:
            sizes.append(len(find_processes(REPLICA)))
            time.sleep(0.5)

    watcher = Thread(target=watch)
    watcher.start()
    code = workspace.run_job(
        runner="ray",
        engine={"kind": "scripted", "default": "seen {id}", "slots": 4, "delay_ms": 1500},
        workers={"generate": {"min": 1, "max": 4, "cpus": 1}, "prepare": {"max": 1}},
        output={"chunk_rows": 4},
    )
    wait_until(lambda: not find_processes(REPLICA))
    ended.append(True)
    watcher.join()
    log.info("%s %s", sizes, workspace.messages)
    assert code == 0
    assert 1 < max(sizes) <= 4  # by how long replicas take to start on this machine now
    assert sorted(set(sizes), key=sizes.index)[:2] == [0, 1]
    assert Counter(workspace.list_answered_ids()) == Counter(f"r{number}" for number in range(480))


def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")
