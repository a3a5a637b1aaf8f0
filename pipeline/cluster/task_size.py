"""How many slices of chunks one task has.

A task costs the driver and the crash ledger more than the slices in it do, so small slices share one.
"""

from __future__ import annotations

from pipeline.manifest.chunks import TARGET_CHUNK_BYTES

TASK_S = 1.0  # of work that a task has at least, if its slices fit into memory
WAITING_TASKS = 2  # prepared tasks that wait at a replica beside those that it answers


def count_task_slices(waiting_slices: int, seconds_per_slice: float, bytes_per_slice: float, slots: int) -> int:
    """How many slices the next task has: as many as take TASK_S and are no larger than one slice may be.

    Near the end there are fewer, so that all replicas end at about the same time.
    """
    in_time, in_memory = int(TASK_S / seconds_per_slice), int(TARGET_CHUNK_BYTES / max(1.0, bytes_per_slice))
    return max(1, min(in_time, in_memory, waiting_slices // (2 * slots)))
