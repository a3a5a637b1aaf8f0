"""The packets of a video, in the order in which they lie in the file -> which of them must be decoded for some frames.

A run begins at a key frame and ends with the last packet that its frames need; what lies between two
runs is neither read nor decoded. Pure: the same answer tells a reader what to decode and a fetcher what to bring.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Packet:
    stamp: int | None  # when it is shown, in the stream's own unit
    key: bool
    shown: bool  # False: only there for others to lean on
    place: int  # in the file; -1 where the container does not say
    size: int


@dataclass(frozen=True, slots=True)
class Run:
    first: int  # numbers of packets
    last: int


class Table:
    def __init__(self, packets: Sequence[Packet]):
        self.packets = packets

    @cached_property
    def number(self) -> dict[int, int]:
        """Of the packet with a stamp. Empty where stamps are missing, not unique, or of several recordings at once."""
        found = {each.stamp: number for number, each in enumerate(self.packets) if each.stamp is not None}
        in_file = [stamp for stamp, number in found.items() if self.packets[number].key]
        return found if len(found) == len(self.packets) and in_file == self.keys else {}

    @property
    def ordered(self) -> bool:
        return bool(self.number)

    @cached_property
    def stamps(self) -> list[int]:
        """Of every frame, in the order of showing; without stamps frames count as they come.

        What is shown before the first key frame leans on what was cut off, and no decoder gives it.
        """
        shown = [each.stamp for each in self.packets if each.shown]
        if not self.ordered:
            return [*range(len(shown))]
        start = self.keys[0] if self.keys else -math.inf
        return sorted(stamp for stamp in shown if stamp is not None and stamp >= start)

    @cached_property
    def keys(self) -> list[int]:
        """Stamps of key frames. A frame shown before one may lean on what came before it."""
        return sorted(each.stamp for each in self.packets if each.key and each.stamp is not None)

    def runs(self, indices: Sequence[int]) -> list[Run]:
        """For frames in ascending order."""
        runs: list[Run] = []
        for index in indices:
            stamp = self.stamps[index]
            last = self.number[stamp]
            at = bisect_right(self.keys, stamp)
            first = min(self.number[self.keys[at - 1]] if at else 0, last)
            if runs and first <= runs[-1].last:
                runs[-1] = Run(runs[-1].first, max(runs[-1].last, last))
            else:
                runs.append(Run(first, last))
        return runs

    def ranges(self, indices: Sequence[int]) -> list[tuple[int, int]] | None:
        """Where in the file the packets for some frames lie: from, to. None where that is not known."""
        found = []
        for run in self.runs(indices) if self.ordered else ():
            packets = self.packets[run.first : run.last + 1]
            if any(each.place < 0 for each in packets):
                return None
            found.append((min(each.place for each in packets), max(each.place + each.size for each in packets)))
        return found or None
