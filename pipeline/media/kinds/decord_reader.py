"""Reads video frames with decord, which reads the whole file into memory first, unless it is given a path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import decord
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.media.kinds.base import DecodeLimits


class DecordReader:
    """Decodes frames one by one: a batch at full size would be the largest thing in memory."""

    is_truncated = False  # decord does not tell

    def __init__(self, file: BinaryIO, limits: DecodeLimits):
        if limits.holes:
            raise DecodeError("holes", "decord needs the whole file")
        self.video: Any = decord.VideoReader(file, num_threads=limits.threads)
        self.fps = float(self.video.get_avg_fps())
        count = len(self.video)
        self.times = [float(stamp) for stamp in self.video.get_frame_timestamp(range(count))[:, 0]] if count else []
        height, width = self.video[0].shape[:2] if count else (1, 1)
        self.size = (int(width), int(height))

    def decode_frames(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for index in indices:
            yield index, self.video[index].asnumpy()

    def find_byte_ranges(self, indices: Sequence[int]) -> None:
        return None

    def close(self) -> None:
        del self.video


def open_video(file: BinaryIO, limits: DecodeLimits) -> DecordReader:
    try:
        return DecordReader(file, limits)
    except decord.DECORDError as error:
        raise DecodeError("undecodable", f"video: {str(error).splitlines()[0][:200]}") from error
