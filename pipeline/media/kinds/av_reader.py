"""A video file -> its frames, through PyAV (FFmpeg).

Bit-exact shortcuts: a jump to the nearest key frame, and frames that nothing refers to are not decoded
unless they are wanted. Where a jump lands wrong (streams without an index), all is read from the start.
FFmpeg may open nothing but this file: playlists, which name other files and hosts, are no format here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.media.kinds.base import Bounds, too_long

Frame = NDArray[np.uint8]
FORMATS = "mov,matroska,webm,avi,flv,asf,mpegts,mpeg,mpegvideo,h264,hevc,yuv4mpegpipe,ogg,ivf,gif"
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}


class Av:
    def __init__(self, path: Path, bounds: Bounds):
        self.path, self.bounds = path, bounds
        self._open()
        bounds.check((self.codec.width, self.codec.height), moving=True)
        length_s = (self.container.duration or 0) / av.time_base
        if length_s > bounds.duration_s:
            raise too_long(length_s, bounds)
        self._index()
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.fps = float(rate) if rate else 0.0
        first = next((frame for frame in self._decoded(None)), None)
        turned = first is not None and first.rotation % 180 == 90
        self.turns = (first.rotation if first else 0) // 90
        size = (first.width, first.height) if first else (self.codec.width, self.codec.height)
        self.size = (size[1], size[0]) if turned else size

    def _open(self) -> None:
        self.container = av.open(str(self.path), options=OPTIONS, metadata_errors="replace")
        found = [each for each in self.container.streams.video if "attached_pic" not in str(each.disposition)]
        if not found:
            raise DecodeError("no_video", "a file without a video track")
        self.stream = found[0]
        self.codec = self.stream.codec_context
        if self.codec is None:
            raise DecodeError("codec", "no decoder for this kind of video")
        self.codec.thread_count = self.bounds.threads

    def _index(self) -> None:
        """Where every frame is in time. Streams that do not say are read in order, evenly spaced."""
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in self.container.demux(self.stream)
            if packet.size and not packet.is_discard
        ]
        known = [pts for pts, _ in packets if pts is not None]
        self.ordered = len(known) == len(packets) == len(set(known))
        self.stamps = sorted(known) if self.ordered else [*range(len(packets))]
        self.keys = sorted(pts for pts, key in packets if key and pts is not None) if self.ordered else []
        base = float(self.stream.time_base or 1)
        rate = float(self.stream.average_rate or 25)
        self.times = [stamp * base if self.ordered else stamp / rate for stamp in self.stamps]

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        wanted = {self.stamps[index]: index for index in indices}
        for leap in (True, False) if self.ordered else (False,):
            for stamp, frame in self._walk(sorted(wanted), leap):
                if stamp in wanted:
                    yield wanted.pop(stamp), self._pixels(frame)
            if not wanted:
                return

    def _pixels(self, frame: VideoFrame) -> Frame:
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), self.turns))

    def _walk(self, wanted: list[int], leap: bool) -> Iterator[tuple[int, VideoFrame]]:
        """Frames from the start, or, leaping, from one key frame before each that is wanted."""
        if not leap:
            for number, frame in enumerate(self._decoded(None, {*wanted} if self.ordered else None)):
                yield (frame.pts if self.ordered and frame.pts is not None else number), frame
            return
        while wanted:
            key = self._key(wanted[0])
            for frame in self._decoded(key, {*wanted}):
                if frame.pts is None:
                    continue
                yield frame.pts, frame
                while wanted and wanted[0] <= frame.pts:
                    wanted = wanted[1:]
                ahead = self._key(wanted[0]) if wanted else None
                if not wanted or (ahead is not None and ahead != key and ahead > frame.pts):
                    break
            else:
                return

    def _key(self, stamp: int) -> int | None:
        at = bisect_right(self.keys, stamp)
        return self.keys[at - 1] if at else None

    def _decoded(self, start: int | None, wanted: set[int] | None = None) -> Iterator[VideoFrame]:
        """Decodes on from a stamp, or from the very start. Broken packets are passed over."""
        if start is None:
            self.container.close()
            self._open()
        else:
            self.container.seek(start, stream=self.stream)
        self.codec.skip_frame = "DEFAULT"
        for packet in self.container.demux(self.stream):
            if wanted is not None and packet.pts is not None:
                self.codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            try:
                yield from self.codec.decode(packet if packet.size else None)
            except av.error.InvalidDataError:
                continue

    def close(self) -> None:
        self.container.close()


def open_video(path: Path, bounds: Bounds) -> Av:
    try:
        return Av(path, bounds)
    except av.error.FFmpegError as error:
        raise DecodeError("undecodable", f"video: {error.strerror}") from error
