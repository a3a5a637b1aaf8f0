"""Reads the media of answered rows again, for formats that carry them: whole files, or pictures that boxes refer to.

The job's own rules say what may be read. A picture is the file itself where that holds one picture, and otherwise a PNG
of the page or of the video frame, in the size of the original. A medium that cannot be read is a remark, and the row is
exported without it. Names follow from the row's id, so they are the same in every export.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DecodeError, FetchError
from pipeline.export.inline_media import INLINE_STARTS, InlineMedia
from pipeline.export.remarks import Remarks
from pipeline.fetch.blob import Blob, split_page_fragment
from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job
from pipeline.media.decode import EXTRA_S_PER_FRAME, build_decode_limits
from pipeline.media.decoder_client import DecoderClient
from pipeline.media.sample import find_frame_at, parse_pages
from pipeline.output.store import OutputStore
from pipeline.types import ClipKind

EXTENSIONS = {  # by the first bytes of a file
    rb"\xff\xd8\xff": "jpg",
    rb"\x89PNG": "png",
    rb"GIF8": "gif",
    rb"BM": "bmp",
    rb"RIFF....WEBP": "webp",
    rb"RIFF....AVI ": "avi",
    rb"II[*+]\0|MM\0[*+]": "tif",
    rb"....ftyp(avif|avis)": "avif",
    rb"....ftyp(mif1|msf1|heic|heix|hevc)": "heic",
    rb"....ftypqt": "mov",
    rb"....ftyp": "mp4",
    rb"\x1aE\xdf\xa3": "mkv",
    rb"%PDF-": "pdf",
}


class MediaFiles:
    """Connections and the decoder's process are opened when they are needed."""

    def __init__(self, job: Job):
        self.job = job
        self.inline: InlineMedia = {}  # of the rows that are being exported

    @cached_property
    def fetcher(self) -> Fetcher:
        return Fetcher(self.job)

    @cached_property
    def decoder(self) -> DecoderClient:
        return DecoderClient(build_decode_limits(self.job.model_copy(update={"media": type(self.job.media)()})))

    def prefetch(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Announce the rows whose first media are read next, in order."""
        uris = [row["media"][0]["uri"] for row in rows if row["media"]]
        self.fetcher.prefetch([uri for uri in uris if not uri.startswith(INLINE_STARTS)])

    def open_file(self, row: Mapping[str, Any], index: int, remarks: Remarks) -> Blob | None:
        """The whole file of a row's medium, which the caller closes; None where it cannot be read."""
        uri = row["media"][index]["uri"]
        try:
            if not uri.startswith(INLINE_STARTS):
                return self.fetcher.fetch(uri, full_download=True)
            blob = self.fetcher.fetch(self.find_inline(row, index))
            return replace(blob, pages=split_page_fragment(uri)[1])
        except FetchError as error:
            add_remark(remarks, row, error)
            return None

    def find_inline(self, row: Mapping[str, Any], index: int) -> str | bytes:
        """A document is one source with a medium for each page."""
        sources = self.inline.get(row["id"], ())
        if len(sources) == len(row["media"]):
            return sources[index]
        if len(sources) == 1:
            return sources[0]
        raise FetchError("inline", "its bytes stand in the manifest, and today's does not tell which they are")

    def read_picture(
        self, row: Mapping[str, Any], index: int, remarks: Remarks, *, second: float | None = None
    ) -> bytes | None:
        """The file of a picture; of a video, the frame at a second. None where it cannot be read."""
        pictures = self.read_pictures(row, index, remarks, seconds=[second])
        return pictures[0] if pictures else None

    def read_pictures(
        self, row: Mapping[str, Any], index: int, remarks: Remarks, *, seconds: Sequence[float | None]
    ) -> list[bytes]:
        """The same for several frames of a video. Empty where it cannot be read."""
        blob = self.open_file(row, index, remarks)
        if blob is None:
            return []
        with blob:
            try:
                return self._read_pictures(blob, row["media"][index]["kind"], seconds)
            except DecodeError as error:
                add_remark(remarks, row, error)
                return []

    def _read_pictures(self, blob: Blob, kind: ClipKind, seconds: Sequence[float | None]) -> list[bytes]:
        if blob.data and kind == "image" and not blob.pages and find_extension(blob.data) in ("jpg", "png", "webp"):
            return [blob.data]
        deadline = time.monotonic() + self.job.limits.deadline_s
        probe = self.decoder.open(blob, blob.kind or kind, claimed_kind=kind, deadline=deadline)
        numbers, size = [find_frame_at(probe, second or 0.0) for second in seconds], probe.sizes[0]
        if probe.kind != "video":
            numbers = parse_pages(blob.pages, len(probe.sizes), len(probe.sizes))[:1]
            size = probe.sizes[numbers[0]]
        deadline += EXTRA_S_PER_FRAME * len(numbers)
        return [encode_png(self.decoder.read([number], size, deadline=deadline)[0]) for number in numbers]

    def close(self) -> None:
        for name in ("fetcher", "decoder"):
            if name in vars(self):
                getattr(self, name).close()


def add_remark(remarks: Remarks, row: Mapping[str, Any], error: FetchError | DecodeError) -> None:
    remarks.add(f"media not copied ({error.kind})", f"of row {row['id']}: {error.message}")


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(sink, "PNG")
    return sink.getvalue()


def copy_file(blob: Blob, name: str, target: OutputStore) -> None:
    if blob.path:
        target.upload_file(name, blob.path)
    else:
        target.overwrite(name, blob.data or b"")


def find_extension(head: bytes) -> str:
    """By content, as names are wrong too often.

    >>> find_extension(b"GIF89a"), find_extension(b"text")
    ('gif', 'bin')
    """
    return next((name for start, name in EXTENSIONS.items() if re.match(start, head, re.DOTALL)), "bin")


def read_head(blob: Blob) -> bytes:
    if blob.path:
        with open(blob.path, "rb") as file:
            return file.read(16)
    return (blob.data or b"")[:16]
