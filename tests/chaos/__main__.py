"""Kill what runs, at random moments, and count rows: `python -m tests.chaos --kills 100 --seed 7`

Each episode is a job of its own. One kill comes after the other, each after the run has recovered from the last: it
has committed again. After each, no id stands twice and every part can be read; at the end of an episode every id is
there once. The seed decides who is killed and when, and is printed; Ray's own timing is not in it.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psutil

from tests.bench import harness
from tests.chaos.check import check_end, check_so_far
from tests.chaos.place import DECODER, GENERATE, PREPARE, RANK, Place
from tests.faults import BUSY, CUT, LOST, storm

DONE = (0, 3)  # exit codes of a run that has come to its end
CUT_OFF = 1  # with it Ray ends a driver whose own node was killed, when next it has something to tell that node
PATIENCE_S = 600.0  # for a run to commit again
KILLS_OF_AN_EPISODE = 10
SCRIPTED = {"kind": "scripted", "default": "seen {id}", "slots": 2, "delay_ms": 300}
ONE_REPLICA = {"workers": {"prepare": {"min": 2, "max": 2}, "generate": {"min": 1, "max": 1, "cpus": 2}}}
TINY = {
    "engine": {"kind": "torch", "slots": 4, "kv_tokens": 2048},
    "answer": {"max_new_tokens": 8},
    "model": {"weights": "builtin:tiny", "tensor_parallel": 2},
    **ONE_REPLICA,
}


@dataclass
class Kill:
    what: str
    redone: int  # rows that were prepared again because of it
    recover_s: float
    again: int  # times that the command had to be given again


def one_of(title: str) -> Callable[[Place, random.Random], bool]:
    def kill(place: Place, chance: random.Random) -> bool:
        there = place.workers(title)
        if there:
            victim = chance.choice(there)
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                return False
        return bool(there)

    return kill


def node(place: Place, chance: random.Random) -> bool:
    place.end_node(chance.randrange(100))
    place.add_node()
    return True


def driver(place: Place, chance: random.Random) -> bool:
    place.end_driver(signal.SIGKILL)
    return True


def driver_asked(place: Place, chance: random.Random) -> bool:
    place.end_driver(signal.SIGTERM)
    assert place.driver.returncode in (128 + signal.SIGTERM, *DONE, CUT_OFF), place.said()
    return True


def cluster(place: Place, chance: random.Random) -> bool:
    place.end_cluster()
    place.start_cluster()
    return True


def storage(place: Place, chance: random.Random) -> bool:
    place.end_storage_and_start_it(chance.uniform(0, 2))
    return True


KINDS: dict[str, Callable[[Place, random.Random], bool]] = {
    "prepare worker": one_of(PREPARE),
    "generate worker": one_of(GENERATE),
    "decoder": one_of(DECODER),
    "rank": one_of(RANK),
    "raylet of a node": node,
    "driver": driver,
    "driver, SIGTERM": driver_asked,
    "whole cluster": cluster,
    "S3 server": storage,
}
WEIGHTS = {"prepare worker": 4, "generate worker": 4, "rank": 4, "whole cluster": 1}  # the others 2


@dataclass
class Episode:
    place: Place
    chance: random.Random
    kills: list[Kill] = field(default_factory=list)
    again: int = 0

    def run(self, kinds: list[str]) -> None:
        self.place.start_driver()
        self.recovered(-1)
        for kind in kinds:
            time.sleep(self.chance.uniform(0, 2))
            if self.place.driver.poll() in DONE:
                break
            redone, again, started = self.place.fetched(), self.again, time.monotonic()
            if not KINDS[kind](self.place, self.chance):
                continue
            self.recovered(len(self.place.parts()))
            seconds = time.monotonic() - started
            check_so_far(self.place)
            self.kills.append(Kill(kind, self.place.fetched() - redone, seconds, self.again - again))
            print(f"  {kind}: {seconds:.1f} s, {len(self.place.parts())} parts", file=sys.stderr, flush=True)
        self.recovered(10**9)
        check_end(self.place)

    def recovered(self, parts: int) -> None:
        """Until there are more parts than that, or the run has come to its end; a run that ended is started again."""
        ends, last = time.monotonic() + PATIENCE_S, -1
        while True:
            code, there = self.place.driver.poll(), len(self.place.parts())
            if code not in (None, *DONE):
                self.again += 1
                print(f"  the command ended with {code} and is given again", file=sys.stderr, flush=True)
                self.place.start_driver()
            elif code in DONE or there > max(parts, 0):
                return
            if there > last:
                ends, last = time.monotonic() + PATIENCE_S, there
            assert time.monotonic() < ends, f"nothing was committed for {PATIENCE_S:g} s\n{self.place.said()}"
            time.sleep(0.3)


def plan(chance: random.Random, count: int, kinds: list[str]) -> list[str]:
    return chance.choices(kinds, [WEIGHTS.get(kind, 2) for kind in kinds], k=count)


def chaos(place: Place, *, kills: int, seed: int, rows: int, tiny_every: int = 4) -> list[Kill]:
    """So many kills, over as many episodes as they take; every so manieth on the built-in engine, divided in two."""
    chance, done, number = random.Random(seed), list[Kill](), 0
    while len(done) < kills:
        number += 1
        tiny = tiny_every and number % tiny_every == 0
        kinds = [kind for kind in KINDS if tiny or kind != "rank"]
        sections: dict[str, Any] = TINY if tiny else {"engine": SCRIPTED}
        place.fill(f"e{number}", rows=rows, bad=3, **sections)
        episode = Episode(place, chance)
        print(f"episode {number}: {'torch, two ranks' if tiny else 'scripted'}", file=sys.stderr, flush=True)
        episode.run(plan(chance, min(KILLS_OF_AN_EPISODE, kills - len(done)), kinds))
        done += episode.kills
    return done


def table(kills: list[Kill]) -> str:
    by_kind: dict[str, list[Kill]] = defaultdict(list)
    for kill in kills:
        by_kind[kill.what].append(kill)
    lines = [row(kind, by_kind[kind]) for kind in KINDS if kind in by_kind] + [row("all", kills)]
    return harness.table(
        ["killed", "kills", "rows prepared again, mean", "most", "seconds to recover, median", "most", "command again"],
        lines,
    )


def row(kind: str, kills: list[Kill]) -> list[object]:
    redone, seconds = [kill.redone for kill in kills], [kill.recover_s for kill in kills]
    mean = sum(redone) / len(kills)
    return [kind, len(kills), mean, max(redone), median(seconds), max(seconds), sum(kill.again for kill in kills)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="as an earlier run printed it")
    parser.add_argument("--rows", type=int, default=400, help="of an episode")
    parser.add_argument("--storm", type=float, default=0.01, help="share of requests to S3 that fail all the while")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}: python -m tests.chaos --kills {options.kills} --seed {seed} --rows {options.rows}", flush=True)
    with Place(storm(options.storm, BUSY, CUT, LOST, seed=seed) if options.storm else None) as place:
        kills = chaos(place, kills=options.kills, seed=seed, rows=options.rows)
    print(table(kills))


if __name__ == "__main__":
    main()
