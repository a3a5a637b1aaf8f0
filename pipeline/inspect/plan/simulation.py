"""Simulates a run of many replicas: how much of the replicas' time is used, and what the work around them costs.

A driver gives tasks to replicas one after the other, and each task costs it CPU time; beyond some number of replicas it
cannot give them out as fast as they are done. The costs are measured ones (tests/bench/scale.py, which also compares
the simulation with real runs). Drivers of a run in shards do not wait for each other, so one of them is simulated.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, replace

MAX_SIMULATED_TASKS = 100_000  # at least three rounds of them tell the speed of the rest
SURE_SHARE = 0.95  # of the time of replicas is used if the driver keeps up


@dataclass(frozen=True, slots=True)
class DriverCosts:
    """Measured on two cores of a cloud machine, in seconds of CPU."""

    task_s: float = 0.0045  # of a driver, for a task from its chunk to its receipt
    ledger_s: float = 0.0026  # of the crash ledger, for a task
    start_s: float = 4.0  # of a replica without its model
    row_s: float = 1e-5  # of planning, for a row of the manifest
    base_bytes: float = 260e6  # of a driver's memory
    chunk_bytes: float = 2.1e3  # that a chunk and its part add to it
    slice_bytes: float = 300.0  # that a slice of a chunk adds
    put_requests: float = 1.0  # for a chunk: its part
    get_requests: float = 2.0  # for a chunk: the lease, and the time of its part
    usd_per_put: float = 5e-6
    usd_per_get: float = 4e-7


@dataclass(frozen=True, slots=True)
class Workload:
    rows: int
    chunk_rows: int
    replicas: int  # of all drivers
    rows_per_second: float  # of one replica
    drivers: int = 1
    load_s: float = 0.0  # until a replica that has started has its model
    latency_s: float = 0.0  # of a row
    slice_rows: int | None = None  # of a chunk that is divided, and committed by a task of its own
    tasks_per_replica: int = 5  # that one works on or has waiting
    starts_at_once: bool = True  # False: a pool that begins with one replica and doubles

    @property
    def chunks(self) -> int:
        return math.ceil(self.rows / self.chunk_rows)

    @property
    def task_rows(self) -> int:
        return self.slice_rows or self.chunk_rows

    @property
    def tasks(self) -> int:
        return math.ceil(self.rows / self.task_rows)


@dataclass(frozen=True, slots=True)
class Requests:
    """To the output, on a store that counts them."""

    puts: float
    gets: float
    cost: float  # USD


@dataclass(frozen=True, slots=True)
class Forecast:
    planning_s: float
    seconds: float  # from the end of planning
    busy_share: float  # of the time from the start of each replica to the end
    driver_cpu_share: float  # of one core, for each driver
    driver_bytes: float
    requests: Requests


DEFAULT_COSTS = DriverCosts()


def simulate_run(load: Workload, costs: DriverCosts = DEFAULT_COSTS) -> Forecast:
    tasks, replicas = math.ceil(load.tasks / load.drivers), max(1, load.replicas // load.drivers)
    task_s = load.task_rows / load.rows_per_second
    if load.slice_rows:  # each answering task bears its share of the committing one
        costs = replace(costs, task_s=costs.task_s * (1 + load.slice_rows / load.chunk_rows))
    start_s = costs.start_s + load.load_s
    rounds = [0 if load.starts_at_once else math.ceil(math.log2(number)) for number in range(1, replicas + 1)]
    started_at = [start_s * before for before in rounds]
    ready_at = [started + start_s for started in started_at]
    simulated = min(tasks, max(MAX_SIMULATED_TASKS, 4 * load.tasks_per_replica * replicas))
    ends = simulate_tasks(ready_at, simulated, task_s, load.tasks_per_replica, costs)
    seconds = max(ends)
    if tasks > simulated:  # the second half of the tasks tells the speed of the rest
        seconds += (tasks - simulated) * (ends[-1] - ends[simulated // 2]) / (simulated - 1 - simulated // 2)
    seconds += load.latency_s
    return Forecast(
        planning_s=load.rows * costs.row_s,
        seconds=seconds,
        busy_share=min(1.0, tasks * task_s / sum(seconds - started for started in started_at)),
        driver_cpu_share=min(1.0, tasks * costs.task_s / seconds),
        driver_bytes=costs.base_bytes
        + costs.chunk_bytes * load.chunks
        + (costs.slice_bytes * load.tasks if load.slice_rows else 0.0),
        requests=count_requests(load.chunks, costs),
    )


def count_requests(chunks: float, costs: DriverCosts = DEFAULT_COSTS) -> Requests:
    """Where no row fails: a chunk with failed rows writes one object more."""
    puts, gets = costs.put_requests * chunks, costs.get_requests * chunks
    return Requests(puts, gets, puts * costs.usd_per_put + gets * costs.usd_per_get)


def simulate_tasks(
    ready_at: list[float], tasks: int, task_s: float, tasks_per_replica: int, costs: DriverCosts
) -> list[float]:
    """When each task ends. A replica takes another one when it has fewer than `tasks_per_replica`."""
    free_at = list(ready_at)
    own_ends = [deque[float]() for _ in ready_at]
    has_room = [(ready, 0, number) for number, ready in enumerate(ready_at)]  # the second is the last task
    heapq.heapify(has_room)
    driver_free = ledger_free = 0.0
    ends = []
    for task in range(1, tasks + 1):
        room_at, _, number = heapq.heappop(has_room)
        driver_free = max(driver_free, room_at) + costs.task_s
        ledger_free = max(ledger_free, driver_free) + costs.ledger_s
        free_at[number] = max(free_at[number], ledger_free) + task_s
        ends.append(free_at[number])
        own_ends[number].append(free_at[number])
        is_full = len(own_ends[number]) == tasks_per_replica
        heapq.heappush(has_room, (own_ends[number].popleft() if is_full else driver_free, task, number))
    return ends


def count_fed_replicas(task_rows: int, rows_per_second: float, costs: DriverCosts = DEFAULT_COSTS) -> int:
    """How many replicas one driver keeps busy."""
    return max(1, int(task_rows / rows_per_second / max(costs.task_s, costs.ledger_s) * SURE_SHARE))
