"""What must hold after every kill, and what at the end of a run."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq

from tests.chaos.place import DECODER, GENERATE, PREPARE, RANK, Place

LEAVE_S = 60.0  # for processes that were told to end, on a loaded machine


def part(place: Place, path: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, and the note of the commit. Fails where an object is not whole."""
    table = pq.read_table(io.BytesIO(place.store.cat_file(path)))
    return table.to_pylist(), json.loads(table.schema.metadata[b"vlbatch"])


def answers(place: Place) -> tuple[Counter[str], Counter[str]]:
    """How often each id stands in data/, and in the dead letters that belong to a commit."""
    answered, failed = Counter[str](), Counter[str]()
    for path in place.parts():
        rows, note = part(place, path)
        answered.update(row["id"] for row in rows)
        if note["errors"]:
            letters = path.replace("/data/", "/errors/").rpartition("/")[0] + "/" + note["errors"]
            failed.update(row["id"] for row in part(place, letters)[0])
    return answered, failed


def check_so_far(place: Place) -> None:
    answered, failed = answers(place)
    twice = {each: count for each, count in (answered + failed).items() if count > 1}
    assert not twice, f"more than once: {twice}"
    assert set(answered) | set(failed) <= place.asked
    assert set(failed) <= place.bad, f"healthy rows given up: {set(failed) - place.bad}"


def check_end(place: Place) -> None:
    """Each row once, in data/ or in errors/; nothing half written; nobody left at work."""
    check_so_far(place)
    answered, failed = answers(place)
    assert set(answered) == place.asked - place.bad, f"not answered: {place.asked - place.bad - set(answered)}"
    assert set(failed) == place.bad
    names = place.store.find(place.output)
    assert not [name for name in names if ".tmp" in name]
    for title in (PREPARE, GENERATE, RANK, DECODER):
        within(LEAVE_S, lambda: not place.workers(title), f"left over: {title}")  # noqa: B023


def within(seconds: float, there: Callable[[], bool], otherwise: str) -> None:
    ends = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < ends, otherwise
        time.sleep(0.2)
