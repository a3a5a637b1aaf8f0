"""A video file -> its frames, through PyAV (FFmpeg).

Bit-exact shortcuts: a jump to the key frame before a wanted frame, nothing decoded after it, and frames that
nothing refers to left out. Where a jump lands wrong (streams without an index), all is read from the start.
A file with holes is read only where that was announced: what a hole holds is no video.
FFmpeg may open nothing but this file: playlists, which name other files and hosts, are no format here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.packet import Packet as AvPacket
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.media.kinds.base import Bounds, too_long
from pipeline.media.kinds.packets import Packet, Run, Table

Frame = NDArray[np.uint8]
FORMATS = "mov,matroska,webm,avi,flv,asf,mpegts,mpeg,mpegvideo,h264,hevc,yuv4mpegpipe,ogg,ivf,gif"
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
UNPARSED = {**OPTIONS, "fflags": "noparse"}  # packets as the container lists them, whatever is in them


@dataclass(frozen=True, slots=True)
class Pose:
    """How a telephone was held, or that a film is mirrored: axes swapped first, then flipped."""

    sideways: bool = False
    across: bool = False  # left is right
    down: bool = False  # up is down

    @classmethod
    def of(cls, frame: VideoFrame) -> Pose:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        right, down, _, left, below, *_ = struct.unpack("=9i", bytes(matrix))  # where steps to the right and down lead
        if abs(down) > abs(right):
            return cls(True, left < 0, down < 0)
        return cls(False, right < 0, below < 0)

    def upright(self, frame: Frame) -> Frame:
        frame = frame.transpose(1, 0, 2) if self.sideways else frame
        return np.ascontiguousarray(frame[:: -1 if self.down else 1, :: -1 if self.across else 1])


class Av:
    def __init__(self, path: Path, bounds: Bounds):
        self.path, self.bounds = path, bounds
        self._open(UNPARSED if bounds.holes else OPTIONS)
        bounds.check((self.codec.width, self.codec.height), moving=True)
        length_s = (self.container.duration or 0) / av.time_base
        if length_s > bounds.duration_s:
            raise too_long(length_s, bounds)
        self._index()
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.fps = float(rate) if rate else 0.0
        if bounds.holes:
            self._reopen()
        first = next((frame for _, frame in self._walk([0], leap=bounds.holes)), None) if self.times else None
        if first is None and bounds.holes:
            raise DecodeError("holes", "its first frame is not among the bytes that were read")
        self.pose = Pose.of(first) if first else Pose()
        size = (first.width, first.height) if first else (self.codec.width, self.codec.height)
        self.size = (size[1], size[0]) if self.pose.sideways else size

    def _open(self, options: dict[str, str] = OPTIONS) -> None:
        self.container = av.open(str(self.path), options=options, metadata_errors="replace")
        found = [each for each in self.container.streams.video if "attached_pic" not in str(each.disposition)]
        if not found:
            raise DecodeError("no_video", "a file without a video track")
        self.stream = found[0]
        self.codec = self.stream.codec_context
        if self.codec is None:
            raise DecodeError("codec", "no decoder for this kind of video")
        self.codec.thread_count = self.bounds.threads
        self.codec.thread_type = "AUTO" if self.bounds.threads > 1 else "SLICE"

    def _index(self) -> None:
        """Where every frame is in time. Streams that do not say are read in order, evenly spaced."""
        self.table = Table(
            [
                Packet(each.pts, each.is_keyframe, not each.is_discard, -1 if each.pos is None else each.pos, each.size)
                for each in self.container.demux(self.stream)
                if each.size
            ]
        )
        base = float(self.stream.time_base or 1)
        rate = float(self.stream.average_rate or 25)
        self.times = [stamp * base if self.table.ordered else stamp / rate for stamp in self.table.stamps]

    def ranges(self, indices: Sequence[int]) -> list[tuple[int, int]] | None:
        return self.table.ranges(indices)

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        wanted = {self.table.stamps[index]: index for index in indices}
        if self.bounds.holes:
            self._reopen()  # forgets what it read where there was nothing yet
        for leap in (True, False) if self.table.ordered else (False,):
            for stamp, frame in self._walk(sorted(wanted.values()), leap=leap):
                if stamp in wanted:
                    yield wanted.pop(stamp), self._pixels(frame)
            if not wanted or self.bounds.holes:
                return

    def _pixels(self, frame: VideoFrame) -> Frame:
        pixels: Any = frame.to_ndarray(format="rgb24")
        return self.pose.upright(pixels)

    def _walk(self, indices: Sequence[int], *, leap: bool) -> Iterator[tuple[int, VideoFrame]]:
        """Frames, those wanted among them: of all there is, or, leaping, of the runs alone."""
        ordered = self.table.ordered
        wanted = {self.table.stamps[index] for index in indices} if ordered else None
        if leap and ordered:
            for run in self.table.runs(indices):
                self.container.seek(self.table.packets[run.first].stamp or 0, stream=self.stream)
                yield from ((frame.pts, frame) for frame in self._decoded(wanted, run) if frame.pts is not None)
            return
        self._reopen()
        for number, frame in enumerate(self._decoded(wanted, None)):
            yield (frame.pts if ordered and frame.pts is not None else number), frame

    def _reopen(self) -> None:
        self.container.close()
        self._open()

    def _decoded(self, wanted: set[int] | None, run: Run | None) -> Iterator[VideoFrame]:
        """Decodes on from where the file stands. Broken packets are passed over."""
        skip: Literal["DEFAULT", "NONREF"] = "DEFAULT"
        self.codec.skip_frame = skip
        for packet in self._packets(run):
            if wanted is not None and packet is not None and packet.pts is not None:
                need: Literal["DEFAULT", "NONREF"] = "DEFAULT" if packet.pts in wanted else "NONREF"
                if need != skip:
                    self.codec.skip_frame = skip = need
            try:
                yield from self.codec.decode(packet)
            except av.error.InvalidDataError:
                continue

    def _packets(self, run: Run | None) -> Iterator[AvPacket[Any] | None]:
        """Those of the run, or all that follow; None, which has the decoder give what it holds back."""
        following = run.first if run else 0
        for packet in self.container.demux(self.stream):
            if run and packet.size:
                number = -1 if packet.pts is None else self.table.number.get(packet.pts, -1)
                if number < following:
                    continue
                if number > following:  # landed too late
                    break
                following += 1
            yield packet if packet.size else None
            if not packet.size:
                return
            if run and following > run.last:
                break
        yield None

    def close(self) -> None:
        self.container.close()


def open_video(path: Path, bounds: Bounds) -> Av:
    try:
        return Av(path, bounds)
    except av.error.FFmpegError as error:
        raise DecodeError("undecodable", f"video: {error.strerror}") from error
