"""TODO."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import fsspec
import pyarrow as pa

from pipeline import retry_policy
from pipeline.errors import JobError, StoppedError
from pipeline.fetch import object_store
from pipeline.job.spec import Job
from pipeline.manifest.sources import Source
from pipeline.registry import SOURCES, find

T = TypeVar("T")


KINDS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonl.gz": "jsonl"}


@dataclass(frozen=True, slots=True)
class File:
    """One file (or folder of media) of a manifest."""

    url: str
    kind: str

    def open(self) -> Source:
        source: Source = find(SOURCES, self.kind, "source")(self.url)
        return source

    @property
    def base(self) -> str:
        """The folder that relative paths in its rows start at."""
        return self.url if self.kind == "folder" else self.url.rpartition("/")[0]


def files(job: Job) -> list[File]:
    """Every file the manifest names, in a fixed order."""
    path = job.output.path
    own = path.rstrip("/") if "://" in path else f"file://{os.path.abspath(path)}"
    found = [file for url in job.input.manifest for file in expand(url, f"{own}/")]
    if not found:
        raise JobError(f"input.manifest: nothing found at {', '.join(job.input.manifest)}")
    return found


def expand(url: str, own: str) -> Iterator[File]:
    """The files behind a URL, but for those that the job itself writes: an output may lie inside its manifest."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if any(sign in path for sign in "*?["):
            names = others(filesystem, filesystem.glob(path), own)
        elif filesystem.isdir(path):
            names = others(
                filesystem, (name for name in filesystem.find(path) if kind_of(name) not in (None, "csv")), own
            )
            if not names:
                yield File(filesystem.unstrip_protocol(path), "folder")
                return
        elif filesystem.exists(path):
            names = [path]
        else:
            raise JobError(f"input.manifest: there is no {url}")
    except (ImportError, ValueError) as error:
        raise JobError(f"input.manifest: {url}: {error}") from error
    except PermissionError as error:
        raise JobError(f"input.manifest: {url}: access denied; check the credentials in the environment") from error
    except store_errors(url) as error:
        told = object_store.translated(error, url)
        advice = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" if url.startswith("s3") else ""
        raise JobError(f"input.manifest: {told.message}{advice if told.kind == 'denied' else ''}") from error
    for name in names:
        kind = kind_of(name)
        if kind is None:
            raise JobError(f"input.manifest: {name}: a manifest is a folder, or ends in {', '.join(KINDS)}")
        yield File(filesystem.unstrip_protocol(name), kind)


def others(filesystem: Any, names: Iterable[str], own: str) -> list[str]:
    return sorted(name for name in names if not filesystem.unstrip_protocol(name).startswith(own))


def store_errors(url: str) -> tuple[type[Exception], ...]:
    """What may come out of listing there."""
    kind = url.partition("://")[0]
    return object_store.Store(kind).errors if kind in {*object_store.ERRORS, *object_store.ALIASES} else (OSError,)


def reading(file: File, attempt: Callable[[], T]) -> T:
    """What an attempt at a file gives. Trouble that may pass is waited out, as an output's is; other stops the run."""
    for number in count(1):
        try:
            return attempt()
        except store_errors(file.url) as error:
            policy = retry_policy.OUTPUT.get(retry_policy.kind_of(error))
            if policy is None or number >= policy.attempts:
                raise unreadable(file, error) from error
            time.sleep(policy.wait_s(number, random.random()))
    raise AssertionError


def schema_of(file: File) -> pa.Schema:
    return reading(file, lambda: file.open().schema())


def unreadable(file: File, error: Exception) -> StoppedError:
    reason = getattr(error, "strerror", None) or type(error.__cause__ or error).__name__
    return StoppedError(
        f"stopped: {file.url} cannot be read ({reason}); what was committed stays, the same command goes on"
    )


def kind_of(name: str) -> str | None:
    return next((kind for ending, kind in KINDS.items() if name.lower().endswith(ending)), None)
