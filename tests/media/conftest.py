"""One decoder for all tests of this folder, and others where a test needs other settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job
from pipeline.media.clips import look
from pipeline.media.decode import Eyes
from pipeline.types import Ask, Clip, Medium
from tests.media.sample_media import Look, Plain, a_job


@pytest.fixture(scope="session")
def see() -> Iterator[Look]:
    """Look at something with default settings."""
    job = a_job()
    with Fetcher(job) as fetcher, Eyes(job, Plain()) as eyes:

        def at(source: Any, kind: Any = None, **ask: Any) -> list[Clip]:
            return look(Medium(source, kind, Ask(**ask)), fetcher=fetcher, eyes=eyes)

        at.eyes = eyes
        yield at


@pytest.fixture
def see_with() -> Iterator[Callable[[Job], Look]]:
    """Look with other settings; the decoder goes with the test."""
    opened: list[Any] = []

    def build(job: Job) -> Look:
        fetcher, eyes = Fetcher(job), Eyes(job, Plain())
        opened.extend((fetcher, eyes))
        at = lambda source, kind=None, **ask: look(Medium(source, kind, Ask(**ask)), fetcher=fetcher, eyes=eyes)  # noqa: E731
        at.eyes = eyes
        return at

    yield build
    for each in opened:
        each.close()
