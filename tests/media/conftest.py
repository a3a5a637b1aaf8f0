"""One decoder for all tests of this folder, and others for tests that need other settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job
from pipeline.media.clips import load_clips
from pipeline.media.decode import ClipDecoder
from pipeline.types import Clip, MediaOptions, MediaRef
from tests.media.sample_media import LoadClips, PlainFrameRules, build_media_job


def open_clip_loader(job: Job, resources: ExitStack) -> LoadClips:
    fetcher = resources.enter_context(Fetcher(job))
    clip_decoder = resources.enter_context(ClipDecoder(job, PlainFrameRules()))

    def load(source: Any, kind: Any = None, **options: Any) -> list[Clip]:
        media_ref = MediaRef(source, kind, MediaOptions(**options))
        return load_clips(media_ref, fetcher=fetcher, clip_decoder=clip_decoder)

    load.clip_decoder = clip_decoder
    return load


@pytest.fixture(scope="session")
def load() -> Iterator[LoadClips]:
    """Loads media with default settings."""
    with ExitStack() as resources:
        yield open_clip_loader(build_media_job(), resources)


@pytest.fixture
def open_loader() -> Iterator[Callable[[Job], LoadClips]]:
    """Loads media with the settings of a job."""
    with ExitStack() as resources:
        yield lambda job: open_clip_loader(job, resources)
