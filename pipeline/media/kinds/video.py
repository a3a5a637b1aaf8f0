"""Videos: frames by index, through PyAV or decord, which give the same pixels.

PyAV is used where it is installed: it skips frames that no wanted frame refers to, is up to twice as fast, takes a
third of the memory and reads AV1. A file that PyAV refuses is not tried with decord, which has an older FFmpeg
inside. Opening reads all packets once, so that indices and times are those of the frames that exist, not those that
the header claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.media.kinds.base import DecodeLimits, Probe, build_too_long_error
from pipeline.types import ClipKind, PixelRegion, Size

Frame = NDArray[np.uint8]  # [height, width, 3]
EVEN_TOLERANCE = 0.25  # frames this near to an even grid, as a part of a frame's time, are on it


class VideoReader(Protocol):
    size: Size  # upright
    times: Sequence[float]  # of every frame, seconds
    fps: float  # as the header says; 0 where it does not
    is_truncated: bool  # the file ends early

    def decode_frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        """In ascending order, without those that cannot be decoded."""
        ...

    def find_byte_ranges(self, indices: Sequence[int]) -> list[tuple[int, int]] | None:
        """Where the file holds these frames and those they refer to; None where that is not known."""
        ...

    def close(self) -> None: ...


class VideoKind:
    def __init__(self, source: bytes | BinaryIO, limits: DecodeLimits, *, claimed_kind: ClipKind | None = None):
        if claimed_kind == "image":
            raise DecodeError("kind", "is a video, and the manifest calls it an image")
        assert not isinstance(source, bytes)
        self.limits = limits
        self.reader = open_reader(source, limits)
        self.probe = build_probe(self.reader, limits)

    def read(self, indices: Sequence[int], size: Size, region: PixelRegion | None = None) -> NDArray[np.uint8]:
        from pipeline.media.resize import resize  # it imports torch, which headers are read without

        order = sorted(set(indices))
        position = {index: number for number, index in enumerate(order)}
        pixels = np.empty((len(order), 3, size[1], size[0]), np.uint8)
        decoded = set()
        for index, frame in self.reader.decode_frames(order):
            pixels[position[index]] = resize(frame[None], size, region)[0]
            decoded.add(index)
        if broken := [index for index in order if index not in decoded]:
            self._replace_broken_frames(pixels, order, broken)
        return pixels if [*indices] == order else pixels[[position[index] for index in indices]]

    def ranges(self, indices: Sequence[int]) -> list[tuple[int, int]] | None:
        return self.reader.find_byte_ranges(sorted(set(indices)))

    def _replace_broken_frames(self, pixels: NDArray[np.uint8], indices: list[int], broken: list[int]) -> None:
        """With `tolerate_truncated`, the nearest frame replaces a broken one."""
        good_positions = [position for position, index in enumerate(indices) if index not in set(broken)]
        if not good_positions or not self.limits.tolerate or self.limits.holes:
            raise DecodeError(
                "frames",
                f"{len(broken)} of {len(indices)} frames are broken, the first is number {broken[0]}; "
                "set media.tolerate_truncated to show the nearest in their place",
            )
        for index in broken:
            position = indices.index(index)
            pixels[position] = pixels[min(good_positions, key=lambda good: abs(good - position))]

    def close(self) -> None:
        self.reader.close()


def open_reader(file: BinaryIO, limits: DecodeLimits) -> VideoReader:
    name = next((name for name in ("av", "decord") if find_spec(name)), None)
    if name is None:
        raise DecodeError("package", "videos need PyAV or decord on the workers: pip install av")
    reader: VideoReader = import_module(f"pipeline.media.kinds.{name}_reader").open_video(file, limits)
    return reader


def build_probe(reader: VideoReader, limits: DecodeLimits) -> Probe:
    limits.check_size(reader.size, moving=True)
    count = len(reader.times)
    if not count:
        raise DecodeError("empty", "a video without frames")
    times = tuple(time - reader.times[0] for time in reader.times)
    span = times[-1]
    if span > limits.duration_s:
        raise build_too_long_error(span, limits)
    fps = reader.fps if reader.fps > 0 else (count - 1) / span if span > 0 else 1.0
    if all(abs(time * fps - index) < EVEN_TOLERANCE for index, time in enumerate(times)):
        return Probe("video", (reader.size,), count, fps, is_truncated=reader.is_truncated)
    fps = (count - 1) / span if span > 0 else fps
    return Probe("video", (reader.size,), count, fps, times, reader.is_truncated)
