"""The chaos suite, short: one kill each of a replica, a driver and a node, over real S3 that fails now and then."""

from __future__ import annotations

import random

from tests.chaos.__main__ import SCRIPTED, Episode, ports
from tests.chaos.place import Place
from tests.faults import BUSY, LOST, storm


def test_whoever_is_killed_every_row_is_there_once_and_nobody_is_left():
    with Place(ports(8), storm(0.01, BUSY, LOST)) as place:
        place.fill("short", rows=160, bad=2, engine=SCRIPTED)
        episode = Episode(place, random.Random(1))
        episode.run(["generate worker", "driver", "raylet of a node"])  # counts rows after each, and at the end
    assert [kill.what for kill in episode.kills] == ["generate worker", "driver", "raylet of a node"]
