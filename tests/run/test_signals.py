"""The first signal lets a run commit what it has begun; the second one, or the end of the grace period, ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.errors import Terminated
from pipeline.run.signals import StopSignals

pytestmark = pytest.mark.process

SLOW = {"kind": "scripted", "default": "seen {id}", "slots": 4, "delay_ms": 1000}


def work_and_send(*signals: int, messages: list[str], wait_s: float = 0) -> None:
    """Work during which this process receives signals."""
    with StopSignals(messages.append) as handlers, handlers.stop_gracefully() as stopping:
        for number in signals:
            os.kill(os.getpid(), number)
        time.sleep(wait_s)
        assert stopping.is_set()
        messages.append("went on")


@pytest.fixture
def messages():
    return []


def test_the_first_signal_lets_running_work_finish(messages):
    with pytest.raises(Terminated):
        work_and_send(signal.SIGTERM, messages=messages)
    assert "went on" in messages


def test_the_second_signal_ends_at_once(messages):
    with pytest.raises(KeyboardInterrupt):
        work_and_send(signal.SIGTERM, signal.SIGINT, messages=messages)
    assert "went on" not in messages


def test_the_run_ends_with_the_grace_period_that_ray_gives(messages, monkeypatch):
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "0.5")
    with pytest.raises(Terminated):
        work_and_send(signal.SIGTERM, messages=messages, wait_s=30)
    assert "went on" not in messages


def test_without_running_work_the_first_signal_ends_at_once(messages):
    with StopSignals(messages.append), pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
    assert messages == []


def test_previous_signal_handlers_are_restored(messages):
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(messages.append):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_stopped_while_ray_starts_exits_with_143_and_leaves_no_process(workspace, ray_environment):
    workspace.write_manifest(workspace.draw_images(4))
    command = [sys.executable, "-m", "pipeline", "run", str(workspace.write_job_file(engine=SLOW))]
    run = subprocess.Popen(command, env=ray_environment, stderr=subprocess.PIPE, text=True)
    while not find_ray_processes(ray_environment) and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    stderr = run.communicate()[1]
    assert (run.returncode, stderr.splitlines()[-1][:11]) == (143, "terminated;")
    psutil.wait_procs(find_ray_processes(ray_environment), timeout=60)
    assert not find_ray_processes(ray_environment)


def find_ray_processes(ray_environment) -> list[psutil.Process]:
    folder = ray_environment["RAY_TMPDIR"]
    processes = psutil.process_iter(["cmdline"])
    return [process for process in processes if any(folder in word for word in process.info["cmdline"] or ())]


def test_a_stopped_run_commits_its_current_chunk_and_exits_with_143(workspace):
    workspace.write_manifest(workspace.draw_images(40))
    command = [sys.executable, "-m", "pipeline", "run", str(workspace.write_job_file(engine=SLOW)), "--local"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not workspace.list_parts() and run.poll() is None:
        time.sleep(0.02)
    committed = workspace.list_parts()
    time.sleep(0.3)  # the next chunk has begun, and takes a second
    run.send_signal(signal.SIGTERM)
    stderr = run.communicate()[1]
    assert run.returncode == 143
    assert "chunks that have begun are committed first" in stderr
    assert len(committed) < len(workspace.list_parts()) < 10
    assert committed.items() <= workspace.list_parts().items()
    assert workspace.run_job() == 0
    assert workspace.list_answered_ids() == sorted(f"r{n}" for n in range(40))
