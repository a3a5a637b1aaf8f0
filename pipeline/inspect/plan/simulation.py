"""Simulates a run of many replicas: how much of the replicas' time is used, and what the work around them costs.

A driver gives tasks to replicas one after the other, and each task and each slice in it costs it CPU time; beyond some
number of replicas it cannot give them out as fast as they are done. The costs are measured ones (tests/bench/scale.py,
which also compares the simulation with real runs). Drivers of a run in shards do not wait for each other, so one of
them is simulated.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

from pipeline.cluster.actor_pool import MAX_GROWTH
from pipeline.cluster.task_size import WAITING_TASKS, count_task_slices

MAX_SIMULATED_TASKS = 100_000  # at least three rounds of them tell the speed of the rest
ENDLESS_ROWS = 10**12
SURE_SHARE = 0.95  # of the time of replicas is used if the driver keeps up


@dataclass(frozen=True, slots=True)
class DriverCosts:
    """Measured on two cores of a cloud machine, in seconds of CPU."""

    task_s: float = 0.0043  # of a driver, for a task from its submission to its receipts
    slice_s: float = 0.0002  # of a driver, for each slice in it
    ledger_task_s: float = 0.0023  # of the crash ledger
    ledger_slice_s: float = 0.0003
    start_s: float = 4.0  # of a replica without its model
    row_s: float = 1e-5  # of planning, for a row of the manifest
    base_bytes: float = 260e6  # of a driver's memory
    chunk_bytes: float = 120.0  # that a chunk, its part and its commit add to it
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
    row_bytes: float = math.inf  # when it is prepared; unknown: no two slices share a task
    tasks_at_once: int = 3  # that one works on
    first_replicas: int | None = None  # of each driver, that start at once; None: all

    @property
    def chunks(self) -> int:
        return math.ceil(self.rows / self.chunk_rows)

    @property
    def travelling_rows(self) -> int:
        """Of a slice, or of a chunk that is not divided."""
        return self.slice_rows or self.chunk_rows

    @property
    def slices(self) -> int:
        return math.ceil(self.rows / self.travelling_rows)

    @property
    def slice_s(self) -> float:
        """Of a replica that has nothing else to do."""
        return self.travelling_rows / self.rows_per_second

    @property
    def task_slices(self) -> int:
        """How many slices a task has, but for the last ones."""
        slots = self.replicas * (self.tasks_at_once + WAITING_TASKS)
        slice_bytes = self.travelling_rows * self.row_bytes
        return count_task_slices(self.slices, self.slice_s * self.tasks_at_once, slice_bytes, slots)

    def count_driver_s(self, costs: DriverCosts) -> float:
        """For a task. It bears its share of the tasks that commit chunks of several slices."""
        committed = self.task_slices * self.slice_rows / self.chunk_rows if self.slice_rows else 0.0
        return costs.task_s * (1 + committed) + costs.slice_s * self.task_slices

    def count_ledger_s(self, costs: DriverCosts) -> float:
        return costs.ledger_task_s + costs.ledger_slice_s * self.task_slices


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
    tasks = math.ceil(load.slices / load.drivers / load.task_slices)
    replicas, task_s = max(1, load.replicas // load.drivers), load.task_slices * load.slice_s
    driver_s, ledger_s = load.count_driver_s(costs), load.count_ledger_s(costs)
    start_s = costs.start_s + load.load_s
    started_at = [start_s * count_waves_before(number, load) for number in range(1, replicas + 1)]
    ready_at = [started + start_s for started in started_at]
    tasks_per_replica = load.tasks_at_once + WAITING_TASKS
    simulated = min(tasks, max(MAX_SIMULATED_TASKS, 4 * tasks_per_replica * replicas))
    ends = simulate_tasks(ready_at, simulated, task_s, tasks_per_replica, driver_s, ledger_s)
    seconds = max(ends)
    if tasks > simulated:  # the second half of the tasks tells the speed of the rest
        seconds += (tasks - simulated) * (ends[-1] - ends[simulated // 2]) / (simulated - 1 - simulated // 2)
    seconds += load.latency_s
    return Forecast(
        planning_s=load.rows * costs.row_s,
        seconds=seconds,
        busy_share=min(1.0, tasks * task_s / sum(seconds - started for started in started_at)),
        driver_cpu_share=min(1.0, tasks * driver_s / seconds),
        driver_bytes=costs.base_bytes
        + costs.chunk_bytes * load.chunks
        + (costs.slice_bytes * load.slices if load.slice_rows else 0.0),
        requests=count_requests(load.chunks, costs),
    )


def count_waves_before(number: int, load: Workload) -> int:
    """How many waves of replicas start before this one does."""
    first = load.first_replicas or max(1, load.replicas // load.drivers)
    return max(0, math.ceil(math.log(number / first, 1 + MAX_GROWTH) - 1e-9))


def count_requests(chunks: float, costs: DriverCosts = DEFAULT_COSTS) -> Requests:
    """Where no row fails: a chunk with failed rows writes one object more."""
    puts, gets = costs.put_requests * chunks, costs.get_requests * chunks
    return Requests(puts, gets, puts * costs.usd_per_put + gets * costs.usd_per_get)


def simulate_tasks(
    ready_at: list[float], tasks: int, task_s: float, tasks_per_replica: int, driver_s: float, ledger_s: float
) -> list[float]:
    """When each task ends. It takes a replica `task_s`, the driver `driver_s` and the ledger `ledger_s`. A replica
    takes another one when it has fewer than `tasks_per_replica`."""
    free_at = list(ready_at)
    own_ends = [deque[float]() for _ in ready_at]
    has_room = [(ready, 0, number) for number, ready in enumerate(ready_at)]  # the second is the last task
    heapq.heapify(has_room)
    driver_free = ledger_free = 0.0
    ends = []
    for task in range(1, tasks + 1):
        room_at, _, number = heapq.heappop(has_room)
        driver_free = max(driver_free, room_at) + driver_s
        ledger_free = max(ledger_free, driver_free) + ledger_s
        free_at[number] = max(free_at[number], ledger_free) + task_s
        ends.append(free_at[number])
        own_ends[number].append(free_at[number])
        is_full = len(own_ends[number]) == tasks_per_replica
        heapq.heappush(has_room, (own_ends[number].popleft() if is_full else driver_free, task, number))
    return ends


def count_fed_replicas(
    slice_rows: int, rows_per_second: float, row_bytes: float = math.inf, costs: DriverCosts = DEFAULT_COSTS
) -> int:
    """How many replicas one driver keeps busy with a manifest that has no end."""
    load = Workload(ENDLESS_ROWS, slice_rows, 1, rows_per_second, row_bytes=row_bytes)
    longest_s = max(load.count_driver_s(costs), load.count_ledger_s(costs))
    return max(1, int(load.task_slices * load.slice_s / longest_s * SURE_SHARE))
