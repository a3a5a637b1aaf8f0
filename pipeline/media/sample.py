"""Merges the media options of row and job, and says which frames and pages they select.

A row's options go before the job's, and the job's before the family's.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import DecodeError
from pipeline.job.spec import MediaSection
from pipeline.media.kinds.base import Probe
from pipeline.types import MediaOptions


def merge_image_options(media: MediaSection, options: MediaOptions) -> MediaOptions:
    return options.with_defaults(MediaOptions(min_pixels=media.min_pixels, max_pixels=media.max_pixels))


def merge_video_options(media: MediaSection, options: MediaOptions) -> MediaOptions:
    """A row's `fps` goes before the job's `frames`."""
    video = media.video
    job = MediaOptions(
        min_pixels=video.min_pixels,
        max_pixels=video.max_pixels,
        total_pixels=video.total_pixels,
        fps=video.fps,
        frames=video.frames,
        min_frames=video.min_frames,
        max_frames=video.max_frames,
    )
    return options.with_defaults(job if options.fps is None else replace(job, frames=None))


def select_span(probe: Probe, options: MediaOptions) -> range:
    """The frames from `video_start` to `video_end`, both included."""
    start = max(options.video_start or 0.0, 0.0)
    end = math.inf if options.video_end is None else options.video_end
    if probe.times:
        span = range(bisect_left(probe.times, start), bisect_right(probe.times, end))
    else:
        stop = probe.count if math.isinf(end) else min(math.floor(end * probe.fps) + 1, probe.count)
        span = range(math.ceil(start * probe.fps), stop)
    if not span:
        length = f"the video is {probe.times[-1] if probe.times else probe.count / probe.fps:.1f} s long"
        raise DecodeError("window", f"no frame lies between video_start {start:g} s and video_end {end:g} s: {length}")
    return span


def compute_span_fps(probe: Probe, span: range) -> float:
    """Frames per second of the span, which can differ from that of the whole video."""
    seconds = probe.times[span[-1]] - probe.times[span[0]] if probe.times and len(span) < probe.count else 0.0
    return (len(span) - 1) / seconds if seconds > 0 else probe.fps


def list_frame_times(probe: Probe, indices: Sequence[int]) -> tuple[float, ...]:
    """Seconds into the video."""
    if probe.times:
        return tuple(probe.times[index] for index in indices)
    return tuple(index / probe.fps for index in indices)


def find_frame_at(probe: Probe, second: float) -> int:
    """The frame that is shown at a moment of the video."""
    index = bisect_left(probe.times, second - 1e-6) if probe.times else round(second * probe.fps)
    return min(max(index, 0), probe.count - 1)


def parse_pages(selection: str, page_count: int, max_pages: int) -> list[int]:
    """
    >>> parse_pages("", 2, 100), parse_pages("3", 9, 100), parse_pages("1-2,5-", 6, 100), parse_pages("#top", 1, 100)
    ([0, 1], [2], [0, 1, 4, 5], [0])
    """
    if selection.startswith(("#", "?")):  # means nothing to us, and need not mean pages
        if page_count > 1:
            advice = "write #page=3, #page=1,3 or #page=1- for all at the end of the URI"
            raise DecodeError("page", f"{selection} does not choose among its {page_count} pages; {advice}")
        return [0]
    pages: list[int] = []
    pages_in_document = f"{page_count} page{'s' * (page_count != 1)}"
    for part in selection.split(",") if selection else ["1-"]:
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not last)):
            raise DecodeError("page", f"#page={selection} is not a page or a range of pages, such as 3 or 1-4")
        low = int(first)
        high = int(last or page_count) if dash else low
        if not 1 <= low <= high <= page_count:
            raise DecodeError("page", f"#page={selection}: the document has {pages_in_document}")
        pages += range(low - 1, high)
        if len(pages) > max_pages:
            raise DecodeError("page", f"more than {max_pages} pages for one row; choose with #page=1-{max_pages}")
    return pages
