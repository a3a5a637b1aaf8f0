"""The chaos suite, short: one kill each of a replica, a node and a driver, over real S3 that fails now and then."""

from __future__ import annotations

import random
import signal

import pytest

from tests.chaos.__main__ import SCRIPTED, Episode
from tests.chaos.check import check_end, within
from tests.chaos.place import Place
from tests.faults import BUSY, LOST, storm

KILLS = ["generate worker", "driver, SIGTERM", "driver", "raylet of a node"]
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def place():
    with Place(storm(0.01, BUSY, LOST)) as place:
        yield place


def test_whoever_is_killed_every_row_is_there_once_and_nobody_is_left(place):
    place.fill("short", rows=256, bad=2, engine=SCRIPTED)  # enough that the run outlasts the kills
    episode = Episode(place, random.Random(1))
    episode.run(KILLS)  # counts rows after each, and at the end
    assert [kill.what for kill in episode.kills] == KILLS
    assert "raylet" not in (place.folder / "driver.log").read_text(), "Ray's own words among ours"


def test_of_two_drivers_one_works_and_when_it_sleeps_the_other_takes_over_and_nothing_is_there_twice(
    place, monkeypatch
):
    monkeypatch.setenv("VLBATCH_LEASE_S", "5")
    place.fill("two", rows=192, bad=1, engine=SCRIPTED)
    place.start_driver()
    sleeper = place.driver
    within(PATIENCE_S, lambda: place.store.find(f"{place.output}/lease", refresh=True), "nobody is at work")
    place.start_driver()
    within(PATIENCE_S, lambda: "waiting for it to end" in place.said(), "the second driver does not wait")
    within(PATIENCE_S, place.parts, "the first driver gets nothing done")
    sleeper.send_signal(signal.SIGSTOP)  # its workers go on
    try:
        assert place.driver.wait(PATIENCE_S) == 3
        assert "no sign of life for 5 s; going on in its place" in place.said()
        after = {path: place.store.info(path)["ETag"] for path in place.parts()}
    finally:
        sleeper.send_signal(signal.SIGCONT)
    assert sleeper.wait(PATIENCE_S) in (3, 4)  # it hears of the other's work, or that it was taken over
    place.store.invalidate_cache()
    assert {path: place.store.info(path)["ETag"] for path in place.parts()} == after
    check_end(place)
