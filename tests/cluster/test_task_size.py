"""How many slices a task has."""

from __future__ import annotations

import pytest

from pipeline.cluster.task_size import TASK_S, count_task_slices
from pipeline.manifest.chunks import TARGET_CHUNK_BYTES

MANY = 10**6


@pytest.mark.parametrize(
    ("waiting", "seconds", "bytes_per_slice", "slots", "slices"),
    [
        (MANY, TASK_S / 50, 1000, 5, 50),
        (MANY, TASK_S / 1.5, 1000, 5, 1),
        (MANY, 60 * TASK_S, 1000, 5, 1),
        (MANY, TASK_S / 50, TARGET_CHUNK_BYTES / 3, 5, 3),
        (MANY, TASK_S / 50, 2 * TARGET_CHUNK_BYTES, 5, 1),
        (200, TASK_S / 50, 1000, 5, 20),
        (200, TASK_S / 50, 1000, 5000, 1),
        (3, TASK_S / 50, 0, 5, 1),
    ],
    ids=["short", "long", "very long", "large", "very large", "near the end", "many replicas", "at the end"],
)
def test_a_task_has_as_many_slices_as_take_a_second(waiting, seconds, bytes_per_slice, slots, slices):
    assert count_task_slices(waiting, seconds, bytes_per_slice, slots) == slices
