"""Kills processes at random while jobs run, and counts rows: `python -m tests.chaos --kills 100 --seed 7`

Each episode is a new job. The next kill comes only after the run has recovered from the last one, that is, after it has
committed again. After each kill no id is committed twice and every part is readable; at the end of an episode every id
is there once. The seed, which is printed, decides what is killed and when. Ray's own timing is not repeatable.
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
from tests.chaos.check import check_committed_rows, check_finished_run
from tests.chaos.environment import DECODER, GENERATE, PREPARE, RANK, ChaosEnvironment
from tests.faults import BUSY, CUT, LOST, storm

FINISHED_CODES = (0, 3)  # exit codes of a run that worked through its manifest
DRIVER_NODE_DIED = 1  # Ray ends a driver with this code after the driver's own node was killed
COMMIT_TIMEOUT_S = 600.0
KILLS_PER_EPISODE = 10
SCRIPTED = {"kind": "scripted", "default": "seen {id}", "slots": 2, "delay_ms": 300}
ONE_REPLICA = {"workers": {"prepare": {"min": 2, "max": 2}, "generate": {"min": 1, "max": 1, "cpus": 2}}}
TENSOR_PARALLEL = {
    "engine": {"kind": "torch", "slots": 4, "kv_tokens": 2048},
    "answer": {"max_new_tokens": 8},
    "model": {"weights": "builtin:tiny", "tensor_parallel": 2},
    **ONE_REPLICA,
}
Killer = Callable[[ChaosEnvironment, random.Random], bool]  # returns whether there was something to kill


@dataclass
class Kill:
    target: str
    repeated_rows: int  # rows that were prepared again because of it
    recovery_s: float
    restarts: int  # times that the command had to be started again


def kill_one_worker(title: str) -> Killer:
    def kill(environment: ChaosEnvironment, rng: random.Random) -> bool:
        workers = environment.list_workers(title)
        if not workers:
            return False
        try:
            rng.choice(workers).kill()
        except psutil.NoSuchProcess:
            return False
        return True

    return kill


def kill_node(environment: ChaosEnvironment, rng: random.Random) -> bool:
    environment.kill_node(rng.randrange(100))
    environment.add_node()
    return True


def kill_driver(environment: ChaosEnvironment, rng: random.Random) -> bool:
    environment.end_driver(signal.SIGKILL)
    return True


def stop_driver(environment: ChaosEnvironment, rng: random.Random) -> bool:
    environment.end_driver(signal.SIGTERM)
    expected_codes = (128 + signal.SIGTERM, *FINISHED_CODES, DRIVER_NODE_DIED)
    assert environment.driver.returncode in expected_codes, environment.read_driver_log()
    return True


def kill_cluster(environment: ChaosEnvironment, rng: random.Random) -> bool:
    environment.kill_cluster()
    environment.start_cluster()
    return True


def restart_storage(environment: ChaosEnvironment, rng: random.Random) -> bool:
    environment.restart_storage(rng.uniform(0, 2))
    return True


KILLERS: dict[str, Killer] = {
    "prepare worker": kill_one_worker(PREPARE),
    "generate worker": kill_one_worker(GENERATE),
    "decoder": kill_one_worker(DECODER),
    "rank": kill_one_worker(RANK),
    "raylet of a node": kill_node,
    "driver": kill_driver,
    "driver, SIGTERM": stop_driver,
    "whole cluster": kill_cluster,
    "S3 server": restart_storage,
}
WEIGHTS = {"prepare worker": 4, "generate worker": 4, "rank": 4, "whole cluster": 1}
DEFAULT_WEIGHT = 2


@dataclass
class Episode:
    environment: ChaosEnvironment
    rng: random.Random
    kills: list[Kill] = field(default_factory=list)
    restarts: int = 0

    def run(self, targets: list[str]) -> None:
        self.environment.start_driver()
        self.wait_for_commit(0)
        for target in targets:
            time.sleep(self.rng.uniform(0, 2))
            if self.environment.driver.poll() in FINISHED_CODES:
                break
            repeated_rows, restarts = self.environment.count_repeated_rows(), self.restarts
            started = time.monotonic()
            if not KILLERS[target](self.environment, self.rng):
                continue
            self.wait_for_commit(len(self.environment.list_parts()))
            seconds = time.monotonic() - started
            check_committed_rows(self.environment)
            repeated_rows = self.environment.count_repeated_rows() - repeated_rows
            self.kills.append(Kill(target, repeated_rows, seconds, self.restarts - restarts))
            parts = len(self.environment.list_parts())
            print(f"  {target}: {seconds:.1f} s, {parts} parts", file=sys.stderr, flush=True)
        self.wait_for_commit(10**9)
        check_finished_run(self.environment)

    def wait_for_commit(self, part_count: int) -> None:
        """Wait for more parts than that, or for the end of the run. Restarts a command that ended early."""
        deadline, last_count = time.monotonic() + COMMIT_TIMEOUT_S, -1
        while True:
            code, count = self.environment.driver.poll(), len(self.environment.list_parts())
            if code not in (None, *FINISHED_CODES):
                self.restarts += 1
                print(f"  the command ended with {code} and is started again", file=sys.stderr, flush=True)
                self.environment.start_driver()
            elif code in FINISHED_CODES or count > part_count:
                return
            if count > last_count:
                deadline, last_count = time.monotonic() + COMMIT_TIMEOUT_S, count
            assert time.monotonic() < deadline, (
                f"nothing was committed for {COMMIT_TIMEOUT_S:g} s\n{self.environment.read_driver_log()}"
            )
            time.sleep(0.3)


def choose_targets(rng: random.Random, count: int, targets: list[str]) -> list[str]:
    return rng.choices(targets, [WEIGHTS.get(target, DEFAULT_WEIGHT) for target in targets], k=count)


def run_episodes(
    environment: ChaosEnvironment, *, kills: int, seed: int, rows: int, tensor_parallel_every: int = 4
) -> list[Kill]:
    """Run episodes until there were so many kills. One episode in four runs the torch engine on two ranks."""
    rng, finished_kills, number = random.Random(seed), list[Kill](), 0
    while len(finished_kills) < kills:
        number += 1
        is_parallel = tensor_parallel_every and number % tensor_parallel_every == 0
        targets = [target for target in KILLERS if is_parallel or target != "rank"]
        sections: dict[str, Any] = TENSOR_PARALLEL if is_parallel else {"engine": SCRIPTED}
        environment.write_job(f"e{number}", rows=rows, broken_rows=3, **sections)
        episode = Episode(environment, rng)
        print(f"episode {number}: {'torch, two ranks' if is_parallel else 'scripted'}", file=sys.stderr, flush=True)
        episode.run(choose_targets(rng, min(KILLS_PER_EPISODE, kills - len(finished_kills)), targets))
        finished_kills += episode.kills
    return finished_kills


def format_kills(kills: list[Kill]) -> str:
    by_target: dict[str, list[Kill]] = defaultdict(list)
    for kill in kills:
        by_target[kill.target].append(kill)
    lines = [summarise_kills(target, by_target[target]) for target in KILLERS if target in by_target]
    return harness.format_table(
        ["killed", "kills", "rows prepared again, mean", "most", "seconds to recover, median", "most", "restarts"],
        [*lines, summarise_kills("all", kills)],
    )


def summarise_kills(target: str, kills: list[Kill]) -> list[object]:
    rows, seconds = [kill.repeated_rows for kill in kills], [kill.recovery_s for kill in kills]
    mean, restarts = sum(rows) / len(kills), sum(kill.restarts for kill in kills)
    return [target, len(kills), mean, max(rows), median(seconds), max(seconds), restarts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="the seed that an earlier run printed")
    parser.add_argument("--rows", type=int, default=400, help="rows of an episode")
    parser.add_argument("--storm", type=float, default=0.01, help="share of requests to S3 that fail")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}: python -m tests.chaos --kills {options.kills} --seed {seed} --rows {options.rows}", flush=True)
    rule = storm(options.storm, BUSY, CUT, LOST, seed=seed) if options.storm else None
    with ChaosEnvironment(rule) as environment:
        kills = run_episodes(environment, kills=options.kills, seed=seed, rows=options.rows)
    print(format_kills(kills))


if __name__ == "__main__":
    main()
