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
from pipeline.media.decode import ClipDecoder
from pipeline.step_timer import StepTimer
from pipeline.types import Clip, MediaRef

WHOLE_FILE_RETRY_KINDS = (
    "holes",
    "frames",
    "undecodable",
    "empty",
    "no_video",
    "changed",
)  # of a file with holes: it is read whole


def load_clips(
    media_ref: MediaRef,
    *,
    fetcher: Fetcher,
    clip_decoder: ClipDecoder,
    meter: StepTimer | None = None,
    deadline_s: float | None = None,
) -> list[Clip]:
    """`deadline_s`: what is left of the row's time; by default all that the job gives a row."""
    ends = time.monotonic() + (clip_decoder.deadline_s if deadline_s is None else deadline_s)
    meter = meter or StepTimer()
    with ExitStack() as arrived:
        with meter.measure("fetch"):
            blobs = [
                arrived.enter_context(fetcher.fetch(each, deadline_s=ends - time.monotonic()))
                for each in list_sources(media_ref)
            ]
        try:
            with meter.measure("decode"):
                return mark_whole_uris(
                    media_ref, clip_decoder.decode(media_ref, blobs, deadline_s=ends - time.monotonic())
                )
        except (DecodeError, FetchError) as error:
            if not (
                error.kind in WHOLE_FILE_RETRY_KINDS and isinstance(media_ref.source, str) and blobs[0].range_loader
            ):
                raise
    with meter.measure("fetch"):
        blob = fetcher.fetch(media_ref.source, deadline_s=ends - time.monotonic(), full_download=True)
    with blob, meter.measure("decode"):
        return mark_whole_uris(media_ref, clip_decoder.decode(media_ref, [blob], deadline_s=ends - time.monotonic()))


def mark_whole_uris(media_ref: MediaRef, clips: list[Clip]) -> list[Clip]:
    """Clips that say whether their URI is the one the manifest gave, credentials and all."""
    return [replace(clip, has_complete_uri=clip.uri == media_ref.source) for clip in clips]


def list_sources(media_ref: MediaRef) -> tuple[str | bytes, ...]:
    """What will be fetched for it, for `Fetcher.ahead`."""
    return media_ref.source if isinstance(media_ref.source, tuple) else (media_ref.source,)
