"""The step that loads media: each MediaRef is fetched, decoded and resized into Clips.

A MediaRef can become several Clips, because a document has several pages. A video that was read in part and cannot be
decoded so is downloaded whole and decoded once more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from pipeline.errors import DecodeError, FetchError, ItemError
from pipeline.fetch.blob import Blob
from pipeline.media.base import MediaFetcher
from pipeline.media.decode import EXTRA_S_PER_FRAME, ClipDecoder
from pipeline.media.steps.base import PreparationState, PreparationTools
from pipeline.step_timer import StepTimer
from pipeline.types import Clip, MediaRef, Turn

WHOLE_FILE_RETRY_KINDS = ("holes", "frames", "undecodable", "empty", "no_video", "changed")


def load_media(state: PreparationState, tools: PreparationTools) -> PreparationState:
    """Each frame of a video extends the row's deadline."""
    deadline, turns = state.deadline, []
    for turn in state.turns:
        parts: list[str | MediaRef | Clip] = []
        for part in turn.parts:
            if not isinstance(part, MediaRef):
                parts.append(part)
                continue
            clips = load_clips(
                part, fetcher=tools.fetcher, clip_decoder=tools.clip_decoder, timer=tools.timer, deadline=deadline
            )
            deadline += sum(EXTRA_S_PER_FRAME * len(clip.times) for clip in clips)
            parts += clips
        turns.append(Turn(turn.role, tuple(parts)))
    return replace(state, turns=tuple(turns), deadline=deadline)


def load_clips(
    media_ref: MediaRef,
    *,
    fetcher: MediaFetcher,
    clip_decoder: ClipDecoder,
    timer: StepTimer | None = None,
    deadline: float | None = None,
) -> list[Clip]:
    """FetchError, DecodeError or PromptError where it fails. The default deadline is the job's for a whole row."""
    deadline = time.monotonic() + clip_decoder.deadline_s if deadline is None else deadline
    timer = timer or StepTimer()

    def decode(blobs: Sequence[Blob]) -> list[Clip]:
        with timer.measure("decode"):
            return clip_decoder.decode(media_ref, blobs, deadline=deadline)

    with ExitStack() as open_blobs:
        with timer.measure("fetch"):
            blobs = [
                open_blobs.enter_context(fetcher.fetch(source, deadline_s=deadline - time.monotonic()))
                for source in list_sources(media_ref)
            ]
        try:
            return mark_complete_uris(media_ref, decode(blobs))
        except (DecodeError, FetchError) as error:
            if not can_retry_whole(media_ref, blobs, error):
                raise
    assert isinstance(media_ref.source, str)
    with timer.measure("fetch"):
        whole = fetcher.fetch(media_ref.source, deadline_s=deadline - time.monotonic(), full_download=True)
    with whole:
        return mark_complete_uris(media_ref, decode([whole]))


def can_retry_whole(media_ref: MediaRef, blobs: Sequence[Blob], error: ItemError) -> bool:
    """Whether the error can come from the bytes that were not downloaded."""
    if error.kind not in WHOLE_FILE_RETRY_KINDS or not isinstance(media_ref.source, str):
        return False
    return blobs[0].range_loader is not None


def mark_complete_uris(media_ref: MediaRef, clips: list[Clip]) -> list[Clip]:
    """A clip's URI is incomplete where credentials were taken out of the manifest's."""
    return [replace(clip, has_complete_uri=clip.uri == media_ref.source) for clip in clips]


def list_sources(media_ref: MediaRef) -> tuple[str | bytes, ...]:
    return media_ref.source if isinstance(media_ref.source, tuple) else (media_ref.source,)
