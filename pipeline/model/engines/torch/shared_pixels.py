"""Hands pixels to another rank in memory that both processes map. A pipe would copy them in pieces of 64 KiB.

Rank 0 writes the pixels of a call of the vision tower, and again those of the next: every rank has read its own by the
time the call ends, because it ends on all ranks together.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.model.engines.torch.vision_encoder import AssignedSlice

Place = tuple[int, tuple[int, ...]]  # where an array starts in the memory, and its shape


class SharedPixels:
    """The memory between rank 0 and one other rank. It has no name, and is gone when both processes are."""

    def __init__(self, fd: int | None = None):
        self.fd = os.memfd_create("vlbatch-pixels") if fd is None else fd

    def write(self, arrays: Sequence[NDArray[np.uint8]]) -> list[Place]:
        places: list[Place] = []
        offset = 0
        for array in arrays:
            places.append((offset, array.shape))
            rest = np.ascontiguousarray(array).reshape(-1).data
            while rest:
                written = os.pwrite(self.fd, rest, offset)
                rest, offset = rest[written:], offset + written
        return places

    def read(self, place: Place) -> NDArray[np.uint8]:
        """Without a copy."""
        offset, shape = place
        count = int(np.prod(shape))
        memory = mmap.mmap(self.fd, offset + count, flags=mmap.MAP_PRIVATE)  # what the reader changes stays its own
        return np.frombuffer(memory, np.uint8, count, offset).reshape(shape)

    def close(self) -> None:
        os.close(self.fd)


def share_pixels(assigned: Sequence[AssignedSlice], rank: int, shared_pixels: SharedPixels) -> list[AssignedSlice]:
    """The slices as they are sent to a rank: with the places of its own pixels, and without those of the others."""
    places = iter(shared_pixels.write([part.pixels for part, owner in assigned if owner == rank]))
    return [(replace(part, pixels=next(places) if owner == rank else None), owner) for part, owner in assigned]


def receive_pixels(assigned: Sequence[AssignedSlice], rank: int, shared_pixels: SharedPixels) -> list[AssignedSlice]:
    return [
        (replace(part, pixels=shared_pixels.read(part.pixels)) if owner == rank else part, owner)
        for part, owner in assigned
    ]
