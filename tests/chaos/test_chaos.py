"""A short chaos run: one kill each of a replica, a driver and a node, over a real S3 server with injected faults."""

from __future__ import annotations

import random
import signal

import pytest

from tests.chaos.__main__ import SCRIPTED, Episode
from tests.chaos.check import check_finished_run, wait_until
from tests.chaos.environment import ChaosEnvironment
from tests.faults import BUSY, LOST, storm

pytestmark = pytest.mark.slow
TARGETS = ["generate worker", "driver, SIGTERM", "driver", "raylet of a node"]
TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def environment():
    with ChaosEnvironment(storm(0.01, BUSY, LOST)) as environment:
        yield environment


@pytest.mark.parametrize("output", [{}, {"chunk_rows": 16, "slice_rows": 4}], ids=["chunks", "slices"])
def test_kills_lose_and_repeat_no_row_and_leave_no_process(environment, output):
    name = f"short-{len(output)}"  # the run must outlast the kills
    environment.write_job(name, rows=256, broken_rows=2, engine=SCRIPTED, output=output)
    episode = Episode(environment, random.Random(1))
    episode.run(TARGETS)  # checks rows after each kill and at the end
    assert [kill.target for kill in episode.kills] == TARGETS
    assert "raylet" not in (environment.folder / "driver.log").read_text(), "Ray's log lines reach the user"


def test_a_second_driver_waits_and_takes_over_when_the_first_is_suspended(environment, monkeypatch):
    monkeypatch.setenv("VLBATCH_LEASE_S", "5")
    environment.write_job("two", rows=192, broken_rows=1, engine=SCRIPTED)
    environment.start_driver()
    first_driver = environment.driver
    wait_until(
        TIMEOUT_S,
        lambda: environment.store.glob(f"{environment.output}/_lease/*/*.json"),
        "no driver takes the lease",
    )
    environment.start_driver()
    wait_until(
        TIMEOUT_S, lambda: "waiting for it to end" in environment.read_driver_log(), "the second driver does not wait"
    )
    wait_until(TIMEOUT_S, environment.list_parts, "the first driver commits nothing")
    first_driver.send_signal(signal.SIGSTOP)  # its workers continue
    try:
        assert environment.driver.wait(TIMEOUT_S) == 3
        assert "no sign of life for 5 s; this run takes its place" in environment.read_driver_log()
        parts_after = {path: environment.store.info(path)["ETag"] for path in environment.list_parts()}
    finally:
        first_driver.send_signal(signal.SIGCONT)
    # it counts the commits of the other driver, or stops because it lost the lease
    assert first_driver.wait(TIMEOUT_S) in (3, 4)
    environment.store.invalidate_cache()
    assert {path: environment.store.info(path)["ETag"] for path in environment.list_parts()} == parts_after
    check_finished_run(environment)
