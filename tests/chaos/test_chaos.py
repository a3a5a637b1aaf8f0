"""The chaos suite, short: one kill each of a replica, a node and a driver, over real S3 that fails now and then."""

from __future__ import annotations

import random

from tests.chaos.__main__ import SCRIPTED, Episode, ports
from tests.chaos.place import Place
from tests.faults import BUSY, LOST, storm

KILLS = ["generate worker", "driver, SIGTERM", "driver", "raylet of a node"]


def test_whoever_is_killed_every_row_is_there_once_and_nobody_is_left():
    with Place(ports(8), storm(0.01, BUSY, LOST)) as place:
        place.fill("short", rows=256, bad=2, engine=SCRIPTED)  # enough that the run outlasts the kills
        episode = Episode(place, random.Random(1))
        episode.run(KILLS)  # counts rows after each, and at the end
    assert [kill.what for kill in episode.kills] == KILLS
