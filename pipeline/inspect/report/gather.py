"""An output folder -> what its report tells: figures over all answers, and the few rows that are shown.

Parts are read one after another, first a few columns of each, then the chosen rows whole; what is held does not grow
with the output. Of very many parts some are read, evenly spread, and the report says so.
"""

from __future__ import annotations

import heapq
import io
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from pipeline.inspect.plan.survey import evenly
from pipeline.output.dead_letters import Letter
from pipeline.output.store import Store

MOST_PARTS, READERS = 2000, 16
STEPS_OF_TEN = 20  # of a latency, from one power of ten to the next
EXAMPLES = 5  # of one kind of error
LIGHT = ["id", "tokens", "logprob", "latency_s", "finish", "flags", "violations"]
Place = tuple[str, int]  # a part and the row in it


@dataclass
class Figures:
    """What all the rows that were read add up to."""

    parts: int = 0
    parts_read: int = 0
    rows: int = 0
    vision: Counter[int] = field(default_factory=Counter)
    output: Counter[int] = field(default_factory=Counter)
    confidence: Counter[int] = field(default_factory=Counter)  # percent
    latency: Counter[int] = field(default_factory=Counter)  # by the twentieth of a power of ten of its milliseconds
    finish: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    violations: int = 0  # rows with some

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        self.vision[row["tokens"]["vision"]] += 1
        self.output[row["tokens"]["output"]] += 1
        self.finish[row["finish"]] += 1
        self.flags.update(row["flags"] or ())
        self.violations += bool(row["violations"])
        if row["logprob"] is not None:
            self.confidence[confidence(row["logprob"])] += 1
        if row.get("latency_s") is not None:  # parts of earlier versions have none
            self.latency[magnitude(row["latency_s"])] += 1


def confidence(logprob: float) -> int:
    """The mean probability of a token, in percent.

    >>> confidence(0.0), confidence(-0.6931)
    (100, 50)
    """
    return round(100 * math.exp(logprob))


def magnitude(seconds: float) -> int:
    """Latencies lie orders of magnitude apart: equal steps of their logarithm keep both ends to be seen.

    >>> magnitude(0.001), magnitude(1.0), magnitude(2.0)
    (0, 60, 66)
    """
    return max(0, math.floor(STEPS_OF_TEN * math.log10(max(seconds, 1e-3) * 1000)))


@dataclass(frozen=True, slots=True)
class Wish:
    """Which rows are shown."""

    random: int = 24
    worst: int = 12
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    why: str  # chosen, doubtful or random
    row: Mapping[str, Any]


def gather(store: Store, fingerprint: str, wish: Wish) -> tuple[Figures, list[Chosen]]:
    folder = f"data/fp={fingerprint}"
    names = sorted(store.names(folder))
    read = names if wish.ids else [names[at] for at in evenly(len(names), MOST_PARTS)]
    figures = Figures(parts=len(names), parts_read=len(read))
    choice = Choice(wish)
    for name, rows in _parts(store, folder, read):
        for at, row in enumerate(rows):
            figures.add(row)
            choice.offer((name, at), row)
    return figures, list(_whole(store, folder, choice.places()))


class Choice:
    """Rows drawn as they pass: some at random, the least confident, those with an id that was asked for."""

    def __init__(self, wish: Wish):
        self.wish, self.passed, self.chance = wish, 0, random.Random(0)
        self.drawn: list[Place] = []
        self.worst: list[tuple[float, Place]] = []  # a heap with the most confident on top
        self.named: list[Place] = []

    def offer(self, place: Place, row: Mapping[str, Any]) -> None:
        self.passed += 1
        if row["id"] in self.wish.ids:
            self.named.append(place)
        if len(self.drawn) < self.wish.random:
            self.drawn.append(place)
        elif (at := self.chance.randrange(self.passed)) < self.wish.random:
            self.drawn[at] = place
        if row["logprob"] is not None and self.wish.worst:
            entry = (-row["logprob"], place)
            if len(self.worst) < self.wish.worst:
                heapq.heappush(self.worst, entry)
            else:
                heapq.heappushpop(self.worst, entry)

    def places(self) -> dict[Place, str]:
        """Why each is shown; a row is shown once."""
        doubtful = [place for _, place in sorted(self.worst, reverse=True)]
        reasons = [("chosen", self.named), ("doubtful", doubtful), ("random", sorted(self.drawn))]
        out: dict[Place, str] = {}
        for why, places in reasons:
            for place in places:
                out.setdefault(place, why)
        return out


def _parts(store: Store, folder: str, names: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    def light(name: str) -> list[dict[str, Any]]:
        part = pq.ParquetFile(io.BytesIO(store.read(f"{folder}/{name}")))
        there = [column for column in LIGHT if column in part.schema_arrow.names]
        rows: list[dict[str, Any]] = part.read(columns=there).to_pylist()
        return rows

    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(names), 4 * READERS):
            some = names[start : start + 4 * READERS]
            yield from zip(some, readers.map(light, some), strict=True)


def _whole(store: Store, folder: str, places: Mapping[Place, str]) -> Iterator[Chosen]:
    by_part: dict[str, list[int]] = {}
    for name, at in places:
        by_part.setdefault(name, []).append(at)
    rows: dict[Place, dict[str, Any]] = {}
    for name, numbers in by_part.items():
        table = pq.read_table(io.BytesIO(store.read(f"{folder}/{name}")))
        rows |= {(name, at): table.slice(at, 1).to_pylist()[0] for at in numbers}
    return (Chosen(why, rows[place]) for place, why in places.items())


@dataclass
class Group:
    """The rows that failed for one reason."""

    name: str  # stage/kind
    count: int = 0
    examples: list[Letter] = field(default_factory=list)


def groups(letters: Iterable[Letter]) -> list[Group]:
    """Letters by reason, the commonest first; of each a few examples."""
    found: dict[str, Group] = {}
    for letter in letters:
        name = f"{letter.stage}/{letter.kind}"
        group = found.setdefault(name, Group(name))
        group.count += 1
        if len(group.examples) < EXAMPLES:
            group.examples.append(letter)
    return sorted(found.values(), key=lambda group: -group.count)
