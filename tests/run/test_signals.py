"""Asked to stop, a run commits what it began and goes; asked twice, or out of time, it just goes."""

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

SLOW = {"kind": "scripted", "default": "seen {id}", "slots": 4, "delay_ms": 1000}


def work(*signals: int, said: list[str], wait_s: float = 0) -> None:
    """Something that is under way while signals come."""
    with StopSignals(said.append) as handlers, handlers.stop_gracefully() as stopping:
        for number in signals:
            os.kill(os.getpid(), number)
        time.sleep(wait_s)
        assert stopping.is_set()
        said.append("went on")


@pytest.fixture
def said():
    return []


def test_what_is_under_way_goes_on_after_the_first_signal_and_ends_in_good_order(said):
    with pytest.raises(Terminated):
        work(signal.SIGTERM, said=said)
    assert "went on" in said


def test_the_second_signal_ends_at_once(said):
    with pytest.raises(KeyboardInterrupt):
        work(signal.SIGTERM, signal.SIGINT, said=said)
    assert "went on" not in said


def test_the_grace_is_what_ray_gives_and_ends_the_run_when_it_is_over(said, monkeypatch):
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "0.5")
    with pytest.raises(Terminated):
        work(signal.SIGTERM, said=said, wait_s=30)
    assert "went on" not in said


def test_with_nothing_under_way_the_first_signal_ends_at_once(said):
    with StopSignals(said.append), pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
    assert said == []


def test_handlers_of_before_are_back_afterwards(said):
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(said.append):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_told_to_stop_while_ray_starts_exits_with_143_and_leaves_no_process(workspace, ray_environment):
    workspace.write_manifest(workspace.draw_images(4))
    command = [sys.executable, "-m", "pipeline", "run", str(workspace.write_job_file(engine=SLOW))]
    run = subprocess.Popen(command, env=ray_environment, stderr=subprocess.PIPE, text=True)
    while not rays(ray_environment) and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    said = run.communicate()[1]
    assert (run.returncode, said.splitlines()[-1][:11]) == (143, "terminated;")
    psutil.wait_procs(rays(ray_environment), timeout=60)
    assert not rays(ray_environment)


def rays(ray_environment) -> list[psutil.Process]:
    """Processes of Ray itself, in the folder of the test's own."""
    every = psutil.process_iter(["cmdline"])
    return [one for one in every if any(ray_environment["RAY_TMPDIR"] in word for word in one.info["cmdline"] or ())]


def test_a_run_told_to_stop_commits_the_chunk_it_is_at_and_exits_with_143(workspace):
    workspace.write_manifest(workspace.draw_images(40))
    command = [sys.executable, "-m", "pipeline", "run", str(workspace.write_job_file(engine=SLOW)), "--local"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not workspace.list_parts() and run.poll() is None:
        time.sleep(0.02)
    committed = workspace.list_parts()  # the next chunk takes a second
    run.send_signal(signal.SIGTERM)
    said = run.communicate()[1]
    assert run.returncode == 143
    assert "what is under way is committed first" in said
    assert len(committed) < len(workspace.list_parts()) < 10
    assert committed.items() <= workspace.list_parts().items()
    assert workspace.run_job() == 0
    assert workspace.list_answered_ids() == sorted(f"r{n}" for n in range(40))
