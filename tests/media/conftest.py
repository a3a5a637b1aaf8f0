"""One decoder for all tests of this folder, and others where a test needs other settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job
from pipeline.media.clips import load_clips
from pipeline.media.decode import ClipDecoder
from pipeline.types import Clip, MediaOptions, MediaRef
from tests.media.sample_media import Look, Plain, a_job


@pytest.fixture(scope="session")
def see() -> Iterator[Look]:
    """Look at something with default settings."""
    job = a_job()
    with Fetcher(job) as fetcher, ClipDecoder(job, Plain()) as eyes:

        def at(source: Any, kind: Any = None, **ask: Any) -> list[Clip]:
            return load_clips(MediaRef(source, kind, MediaOptions(**ask)), fetcher=fetcher, clip_decoder=eyes)

        at.eyes = eyes
        yield at


@pytest.fixture
def see_with() -> Iterator[Callable[[Job], Look]]:
    """Look with other settings; the decoder goes with the test."""
    opened: list[Any] = []

    def build(job: Job) -> Look:
        fetcher, eyes = Fetcher(job), ClipDecoder(job, Plain())
        opened.extend((fetcher, eyes))

        def at(source: Any, kind: Any = None, **options: Any) -> list[Clip]:
            return load_clips(MediaRef(source, kind, MediaOptions(**options)), fetcher=fetcher, clip_decoder=eyes)

        at.eyes = eyes
        return at

    yield build
    for each in opened:
        each.close()
