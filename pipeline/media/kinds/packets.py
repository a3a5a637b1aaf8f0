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
    pts: int | None  # when it is shown, in the stream's own unit
    is_keyframe: bool
    is_shown: bool  # False: only there for others to lean on
    offset: int  # in the file; -1 where the container does not say
    size: int


@dataclass(frozen=True, slots=True)
class PacketRun:
    first_packet: int  # numbers of packets
    last_packet: int


class PacketIndex:
    def __init__(self, packets: Sequence[Packet]):
        self.packets = packets

    @cached_property
    def number_by_pts(self) -> dict[int, int]:
        """Of the packet with a stamp. Empty where stamps are missing, not unique, or of several recordings at once."""
        found = {each.pts: number for number, each in enumerate(self.packets) if each.pts is not None}
        in_file = [stamp for stamp, number in found.items() if self.packets[number].is_keyframe]
        return found if len(found) == len(self.packets) and in_file == self.keyframe_pts else {}

    @property
    def has_usable_pts(self) -> bool:
        return bool(self.number_by_pts)

    @cached_property
    def frame_pts(self) -> list[int]:
        """Of every frame, in the order of showing; without stamps frames count as they come.

        What is shown before the first key frame leans on what was cut off, and no decoder gives it.
        """
        shown = [each.pts for each in self.packets if each.is_shown]
        if not self.has_usable_pts:
            return [*range(len(shown))]
        start = self.keyframe_pts[0] if self.keyframe_pts else -math.inf
        return sorted(stamp for stamp in shown if stamp is not None and stamp >= start)

    @cached_property
    def keyframe_pts(self) -> list[int]:
        """Stamps of key frames. A frame shown before one may lean on what came before it."""
        return sorted(each.pts for each in self.packets if each.is_keyframe and each.pts is not None)

    def find_runs(self, indices: Sequence[int]) -> list[PacketRun]:
        """For frames in ascending order."""
        runs: list[PacketRun] = []
        for index in indices:
            stamp = self.frame_pts[index]
            last = self.number_by_pts[stamp]
            at = bisect_right(self.keyframe_pts, stamp)
            first = min(self.number_by_pts[self.keyframe_pts[at - 1]] if at else 0, last)
            if runs and first <= runs[-1].last_packet:
                runs[-1] = PacketRun(runs[-1].first_packet, max(runs[-1].last_packet, last))
            else:
                runs.append(PacketRun(first, last))
        return runs

    def find_byte_ranges(self, indices: Sequence[int]) -> list[tuple[int, int]] | None:
        """Where in the file the packets for some frames lie: from, to. None where that is not known."""
        found = []
        for run in self.find_runs(indices) if self.has_usable_pts else ():
            packets = self.packets[run.first_packet : run.last_packet + 1]
            if any(each.offset < 0 for each in packets):
                return None
            found.append((min(each.offset for each in packets), max(each.offset + each.size for each in packets)))
        return found or None
