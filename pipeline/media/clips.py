"""A Medium -> Clips: fetched, decoded, resized. What may go wrong is a FetchError, DecodeError or PromptError.

What cannot be said of a video with holes in it is asked once more of all of it.
A list, because a document is several pictures: they take the place of the one medium in its turn.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

from pipeline.errors import DecodeError, FetchError
from pipeline.fetch.fetcher import Fetcher
from pipeline.media.decode import Eyes
from pipeline.meter import Meter
from pipeline.types import Clip, Medium

UNSURE = ("holes", "frames", "undecodable", "empty", "no_video", "changed")  # of a file with holes: it is read whole


def look(
    medium: Medium, *, fetcher: Fetcher, eyes: Eyes, meter: Meter | None = None, deadline_s: float | None = None
) -> list[Clip]:
    """`deadline_s`: what is left of the row's time; by default all that the job gives a row."""
    ends = time.monotonic() + (eyes.deadline_s if deadline_s is None else deadline_s)
    meter = meter or Meter()
    with ExitStack() as arrived:
        with meter.on("fetch"):
            blobs = [
                arrived.enter_context(fetcher.fetch(each, deadline_s=ends - time.monotonic()))
                for each in sources(medium)
            ]
        try:
            with meter.on("decode"):
                return known(medium, eyes.look(medium, blobs, deadline_s=ends - time.monotonic()))
        except (DecodeError, FetchError) as error:
            if not (error.kind in UNSURE and isinstance(medium.source, str) and blobs[0].holes):
                raise
    with meter.on("fetch"):
        blob = fetcher.fetch(medium.source, deadline_s=ends - time.monotonic(), whole=True)
    with blob, meter.on("decode"):
        return known(medium, eyes.look(medium, [blob], deadline_s=ends - time.monotonic()))


def known(medium: Medium, clips: list[Clip]) -> list[Clip]:
    """Clips that say whether their URI is the one the manifest gave, credentials and all."""
    return [replace(clip, whole_uri=clip.uri == medium.source) for clip in clips]


def sources(medium: Medium) -> tuple[str | bytes, ...]:
    """What will be fetched for it, for `Fetcher.ahead`."""
    return medium.source if isinstance(medium.source, tuple) else (medium.source,)
