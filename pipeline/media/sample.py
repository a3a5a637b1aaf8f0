"""What was asked, and what a header says -> which frames, and when they were. No pixels touched.

A row's wish goes before the job's, and the job's before the family's.
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
    """A row that says `fps` means it, also where the job says `frames`."""
    wish = media.video
    job = MediaOptions(
        min_pixels=wish.min_pixels,
        max_pixels=wish.max_pixels,
        total_pixels=wish.total_pixels,
        fps=wish.fps,
        frames=wish.frames,
        min_frames=wish.min_frames,
        max_frames=wish.max_frames,
    )
    return options.with_defaults(job if options.fps is None else replace(job, frames=None))


def select_span(probe: Probe, options: MediaOptions) -> range:
    """The frames from `video_start` to `video_end`, both included. Where they are not evenly spaced, by their times."""
    start = max(options.video_start or 0.0, 0.0)
    end = math.inf if options.video_end is None else options.video_end
    if probe.times:
        span = range(bisect_left(probe.times, start), bisect_right(probe.times, end))
    else:
        last = probe.count if math.isinf(end) else min(math.floor(end * probe.fps) + 1, probe.count)
        span = range(math.ceil(start * probe.fps), last)
    if not span:
        length = f"the video is {probe.times[-1] if probe.times else probe.count / probe.fps:.1f} s long"
        raise DecodeError("window", f"no frame lies between video_start {start:g} s and video_end {end:g} s: {length}")
    return span


def compute_span_fps(probe: Probe, span: range) -> float:
    """Frames a second of a part, which may be another than that of the whole."""
    seconds = probe.times[span[-1]] - probe.times[span[0]] if probe.times and len(span) < probe.count else 0.0
    return (len(span) - 1) / seconds if seconds > 0 else probe.fps


def list_frame_times(probe: Probe, indices: Sequence[int]) -> tuple[float, ...]:
    """Seconds into the video."""
    if probe.times:
        return tuple(probe.times[index] for index in indices)
    return tuple(index / probe.fps for index in indices)


def parse_pages(selection: str, page_count: int, max_pages: int) -> list[int]:
    """
    >>> pages("", 2, 100), pages("3", 9, 100), pages("1-2,5-", 6, 100)
    ([0, 1], [2], [0, 1, 4, 5])
    """
    chosen: list[int] = []
    for part in selection.split(",") if selection else ["1-"]:
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not last)):
            raise DecodeError("page", f"#page={selection} is not a page or a range of pages, such as 3 or 1-4")
        low, high = int(first), (int(last or page_count) if dash else int(first))
        if not 1 <= low <= high <= page_count:
            raise DecodeError("page", f"#page={selection}: the document has {page_count} pages")
        chosen += range(low - 1, high)
        if len(chosen) > max_pages:
            raise DecodeError("page", f"more than {max_pages} pages for one row; choose with #page=1-{max_pages}")
    return chosen
