"""Protocols of what the preparation needs: a fetcher, a decoder, and a family's rules for frames.

A run and a plan prepare rows with the same code. They differ only in the fetcher and the decoder: a plan reads headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from pipeline.fetch.blob import Blob, ByteRanges
from pipeline.media.kinds.base import Probe
from pipeline.types import ClipKind, MediaOptions, PixelRegion, Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class MediaFetcher(Protocol):
    @property
    def bytes_read(self) -> int:
        """Of all that was fetched so far."""
        ...

    def fetch(self, source: str | bytes, *, deadline_s: float | None = None, full_download: bool = False) -> Blob:
        """FetchError where it fails. The caller closes the Blob. With `full_download` no byte of it is missing."""
        ...

    def prefetch(self, sources: Iterable[str | bytes]) -> None:
        """Announces the sources that are fetched next, in order."""
        ...

    def close(self) -> None: ...


class FrameDecoder(Protocol):
    """Has one file open at a time. Deadlines are times of `time.monotonic`; DecodeError where one passes."""

    def wait_until_ready(self) -> None: ...

    def open(self, blob: Blob, kind: str, *, claimed_kind: ClipKind | None, deadline: float) -> Probe:
        """Opens a file as one of MEDIA_KINDS. `claimed_kind` is what the manifest calls it."""
        ...

    def read(
        self, indices: Sequence[int], size: Size, *, region: PixelRegion | None = None, deadline: float
    ) -> NDArray[np.uint8]:
        """A region of some frames, resized: [frames, 3, height, width]."""
        ...

    def ranges(self, batches: Sequence[Sequence[int]], *, deadline: float) -> list[ByteRanges]:
        """The byte ranges that hold the frames of each batch."""
        ...

    def close(self) -> None: ...


class FrameRules(Protocol):
    """The part of a model family that decides what is decoded: which frames, and how large."""

    def fit_image_size(self, source: Size, options: MediaOptions) -> Size:
        """The size to resize to; PromptError of kind `size` where no size fits."""
        ...

    def select_frames(self, frame_range: range, fps: float, options: MediaOptions) -> list[int]: ...

    def fit_video_size(self, source: Size, frame_count: int, options: MediaOptions) -> Size: ...
