"""Reads video frames with PyAV (FFmpeg).

The shortcuts do not change pixels: it seeks to the key frame before a wanted frame, stops after the frame, and skips
frames that no other frame refers to. Where a seek lands wrong, as in streams without an index, it reads from the
start. In a partly downloaded file it reads only the ranges that were announced. FFmpeg may open no other file:
playlists, which name files and hosts, are not among the allowed formats, and no protocol is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import av
import numpy as np
from av.packet import Packet as AvPacket
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.media.kinds.base import DecodeLimits, build_too_long_error
from pipeline.media.kinds.file_end import FileEnd, find_file_end
from pipeline.media.kinds.packets import Packet, PacketIndex, PacketRun

Frame = NDArray[np.uint8]
ALLOWED_FORMATS = "mov,matroska,webm,avi,flv,asf,mpegts,mpeg,mpegvideo,h264,hevc,yuv4mpegpipe,ogg,ivf,gif"
EXACT_DURATION_FORMATS = ("mov", "matroska")  # others guess it, or have a number that means that it is not known
CONTAINER_OPTIONS = {"protocol_whitelist": "none", "format_whitelist": ALLOWED_FORMATS}
UNPARSED_OPTIONS = {**CONTAINER_OPTIONS, "fflags": "noparse"}  # lists packets without reading them


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a phone was held, or that a video is mirrored. Axes are swapped first, then flipped."""

    swap_axes: bool = False
    flip_horizontal: bool = False
    flip_vertical: bool = False

    @classmethod
    def from_frame(cls, frame: VideoFrame) -> Orientation:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        x_to_x, x_to_y, _, y_to_x, y_to_y, *_ = struct.unpack("=9i", bytes(matrix))
        if abs(x_to_y) > abs(x_to_x):
            return cls(True, y_to_x < 0, x_to_y < 0)
        return cls(False, x_to_x < 0, y_to_y < 0)

    def apply(self, frame: Frame) -> Frame:
        frame = frame.transpose(1, 0, 2) if self.swap_axes else frame
        return np.ascontiguousarray(frame[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1])


class PyAvReader:
    def __init__(self, file: BinaryIO, limits: DecodeLimits):
        self.file, self.limits = file, limits
        file_end = FileEnd() if limits.holes else find_file_end(file)
        self._open_container(UNPARSED_OPTIONS if limits.holes else CONTAINER_OPTIONS)
        limits.check_size((self.codec.width, self.codec.height), moving=True)
        if self.container.format.name.startswith(EXACT_DURATION_FORMATS):
            length_s = (self.container.duration or 0) / av.time_base
            if length_s > limits.duration_s:
                raise build_too_long_error(length_s, limits)
        self._index_packets()
        if (problem := self._describe_missing_end(file_end)) and not limits.tolerate:
            raise DecodeError("truncated", f"{problem}; set media.tolerate_truncated to show what there is")
        self.is_truncated = bool(problem) or file_end.is_amid_element or self.ends_amid_packet
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.fps = float(rate) if rate else 0.0
        if limits.holes:
            self._reopen_container()
        first = next((frame for _, frame in self._iterate_frames([0], seek=limits.holes)), None) if self.times else None
        if first is None and limits.holes:
            raise DecodeError("holes", "its first frame is not among the downloaded bytes")
        self.orientation = Orientation.from_frame(first) if first else Orientation()
        size = (first.width, first.height) if first else (self.codec.width, self.codec.height)
        self.size = (size[1], size[0]) if self.orientation.swap_axes else size

    def _open_container(self, options: dict[str, str] = CONTAINER_OPTIONS) -> None:
        self.file.seek(0)
        self.container = av.open(self.file, "r", options=options, metadata_errors="replace")
        streams = [stream for stream in self.container.streams.video if "attached_pic" not in str(stream.disposition)]
        if not streams:
            raise DecodeError("no_video", "a file without a video track")
        self.stream = streams[0]
        self.codec = self.stream.codec_context
        if self.codec is None:
            raise DecodeError("codec", "no decoder for this kind of video")
        self.codec.thread_count = self.limits.threads
        self.codec.thread_type = "AUTO" if self.limits.threads > 1 else "SLICE"

    def _index_packets(self) -> None:
        """Sets the time of every frame. Frames of streams without timestamps are taken to be evenly spaced."""
        packets, self.ends_amid_packet = [], False
        for packet in self.container.demux(self.stream):
            if packet.size:  # never all in memory
                offset = -1 if packet.pos is None else packet.pos
                packets.append(Packet(packet.pts, packet.is_keyframe, not packet.is_discard, offset, packet.size))
                self.ends_amid_packet = packet.is_corrupt
        self.packet_index = PacketIndex(packets)
        time_base, rate = float(self.stream.time_base or 1), float(self.stream.average_rate or 25)
        has_pts = self.packet_index.has_usable_pts
        self.times = [pts * time_base if has_pts else pts / rate for pts in self.packet_index.frame_pts]

    def _describe_missing_end(self, file_end: FileEnd) -> str:
        """MP4 lists its frames, often at its beginning; other containers say how long they are."""
        file_size = self.file.seek(0, os.SEEK_END)
        entries = self.stream.index_entries if self.container.format.name.startswith("mov") else ()
        if missing := sum(entry.pos + entry.size > file_size for entry in entries):
            return f"the file ends before {missing} of its {len(entries)} frames"
        is_short = file_end.declared > file_size
        return f"the file has {file_size:,} of the {file_end.declared:,} bytes that it declares" if is_short else ""

    def find_byte_ranges(self, indices: Sequence[int]) -> list[tuple[int, int]] | None:
        return self.packet_index.find_byte_ranges(indices)

    def decode_frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        wanted = {self.packet_index.frame_pts[index]: index for index in indices}
        if self.limits.holes:
            self._reopen_container()  # drops what was buffered before the bytes arrived
        for seek in (True, False) if self.packet_index.has_usable_pts else (False,):
            for pts, frame in self._iterate_frames(sorted(wanted.values()), seek=seek):
                if pts in wanted:
                    yield wanted.pop(pts), self._to_rgb_array(frame)
            if not wanted or self.limits.holes:
                return

    def _to_rgb_array(self, frame: VideoFrame) -> Frame:
        pixels: Any = frame.to_ndarray(format="rgb24")
        return self.orientation.apply(pixels)

    def _iterate_frames(self, indices: Sequence[int], *, seek: bool) -> Iterator[tuple[int, VideoFrame]]:
        """(pts, frame) of all frames, or with `seek` of the runs that hold the wanted ones."""
        has_pts = self.packet_index.has_usable_pts
        wanted = {self.packet_index.frame_pts[index] for index in indices} if has_pts else None
        if seek and has_pts:
            for run in self.packet_index.find_runs(indices):
                self.container.seek(self.packet_index.packets[run.first_packet].pts or 0, stream=self.stream)
                yield from ((frame.pts, frame) for frame in self._decode_packets(wanted, run) if frame.pts is not None)
            return
        self._reopen_container()
        for number, frame in enumerate(self._decode_packets(wanted, None)):
            yield (frame.pts if has_pts and frame.pts is not None else number), frame

    def _reopen_container(self) -> None:
        self.container.close()
        self._open_container()

    def _decode_packets(self, wanted_pts: set[int] | None, run: PacketRun | None) -> Iterator[VideoFrame]:
        """Decodes from the current position. Broken packets are skipped."""
        skipped: Literal["DEFAULT", "NONREF"] = "DEFAULT"
        self.codec.skip_frame = skipped
        for packet in self._iterate_packets(run):
            if wanted_pts is not None and packet is not None and packet.pts is not None:
                can_skip: Literal["DEFAULT", "NONREF"] = "DEFAULT" if packet.pts in wanted_pts else "NONREF"
                if can_skip != skipped:
                    self.codec.skip_frame = skipped = can_skip
            try:
                yield from self.codec.decode(packet)
            except av.error.InvalidDataError:
                continue

    def _iterate_packets(self, run: PacketRun | None) -> Iterator[AvPacket[Any] | None]:
        """The packets of the run, or all that follow; then None, which flushes the decoder."""
        next_number = run.first_packet if run else 0
        for packet in self.container.demux(self.stream):
            if run and packet.size:
                number = -1 if packet.pts is None else self.packet_index.number_by_pts.get(packet.pts, -1)
                if number < next_number:
                    continue
                if number > next_number:  # the seek landed too late
                    break
                next_number += 1
            yield packet if packet.size else None
            if not packet.size:
                return
            if run and next_number > run.last_packet:
                break
        yield None

    def close(self) -> None:
        self.container.close()


def open_video(file: BinaryIO, limits: DecodeLimits) -> PyAvReader:
    try:
        return PyAvReader(file, limits)
    except av.error.FFmpegError as error:
        raise DecodeError("undecodable", f"video: {error.strerror}") from error
