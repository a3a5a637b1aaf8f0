"""Which packets of a video must be decoded for some frames.

Packets are listed in file order. A run begins at a key frame and ends with the last packet that its frames need;
packets between two runs are neither read nor decoded. The reader decodes by this list, and the fetcher downloads by
it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Packet:
    pts: int | None  # when it is shown, in the stream's time base
    is_keyframe: bool
    is_shown: bool  # False: only other frames refer to it
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
        """Empty where timestamps are missing or not unique, or where the file holds several recordings."""
        numbers = {packet.pts: number for number, packet in enumerate(self.packets) if packet.pts is not None}
        keyframe_pts_in_file = [pts for pts, number in numbers.items() if self.packets[number].is_keyframe]
        is_usable = len(numbers) == len(self.packets) and keyframe_pts_in_file == self.keyframe_pts
        return numbers if is_usable else {}

    @property
    def has_usable_pts(self) -> bool:
        return bool(self.number_by_pts)

    @cached_property
    def frame_pts(self) -> list[int]:
        """The timestamp of every frame, in display order. Without timestamps, frames are numbered in file order.

        Frames before the first key frame are left out: they refer to what was cut off, so no decoder returns them.
        """
        shown = [packet.pts for packet in self.packets if packet.is_shown]
        if not self.has_usable_pts:
            return [*range(len(shown))]
        start = self.keyframe_pts[0] if self.keyframe_pts else -math.inf
        return sorted(pts for pts in shown if pts is not None and pts >= start)

    @cached_property
    def keyframe_pts(self) -> list[int]:
        """A frame that is shown before a key frame may refer to frames before it."""
        return sorted(packet.pts for packet in self.packets if packet.is_keyframe and packet.pts is not None)

    def find_runs(self, indices: Sequence[int]) -> list[PacketRun]:
        """Takes frames in ascending order."""
        runs: list[PacketRun] = []
        for index in indices:
            pts = self.frame_pts[index]
            last = self.number_by_pts[pts]
            keyframes_before = bisect_right(self.keyframe_pts, pts)
            first = min(self.number_by_pts[self.keyframe_pts[keyframes_before - 1]] if keyframes_before else 0, last)
            if runs and first <= runs[-1].last_packet:
                runs[-1] = PacketRun(runs[-1].first_packet, max(runs[-1].last_packet, last))
            else:
                runs.append(PacketRun(first, last))
        return runs

    def find_byte_ranges(self, indices: Sequence[int]) -> list[tuple[int, int]] | None:
        """The byte ranges of the file that hold these frames: (start, end). None where they are not known."""
        ranges = []
        for run in self.find_runs(indices) if self.has_usable_pts else ():
            packets = self.packets[run.first_packet : run.last_packet + 1]
            if any(packet.offset < 0 for packet in packets):
                return None
            ranges.append((min(packet.offset for packet in packets), max(p.offset + p.size for p in packets)))
        return ranges or None
