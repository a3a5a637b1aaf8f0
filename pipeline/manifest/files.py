"""TODO."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
import pyarrow as pa

from pipeline import retry_policy
from pipeline.errors import JobError, StoppedError
from pipeline.fetch import object_store
from pipeline.job.spec import Job
from pipeline.manifest.sources import Source
from pipeline.registry import SOURCES, load_registered

T = TypeVar("T")


SOURCE_BY_ENDING = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl",
}


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file (or folder of media) of a manifest."""

    url: str
    kind: str

    def open_source(self) -> Source:
        source: Source = load_registered(SOURCES, self.kind, "source")(self.url)
        return source

    @property
    def base_folder(self) -> str:
        """The folder that relative paths in its rows start at."""
        return self.url if self.kind == "folder" else self.url.rpartition("/")[0]


def list_manifest_files(job: Job) -> list[ManifestFile]:
    """Every file the manifest names, in a fixed order."""
    path = job.output.path
    own = path.rstrip("/") if "://" in path else f"file://{os.path.abspath(path)}"
    found = [file for url in job.input.manifest for file in expand_url(url, f"{own}/")]
    if not found:
        raise JobError(f"input.manifest: nothing found at {', '.join(job.input.manifest)}")
    return found


def expand_url(url: str, output_prefix: str) -> Iterator[ManifestFile]:
    """The files behind a URL, but for those that the job itself writes: an output may lie inside its manifest."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if any(sign in path for sign in "*?["):
            names = exclude_output_files(filesystem, filesystem.glob(path), output_prefix)
        elif filesystem.isdir(path):
            names = exclude_output_files(
                filesystem,
                (name for name in filesystem.find(path) if detect_source_kind(name) not in (None, "csv")),
                output_prefix,
            )
            if not names:
                yield ManifestFile(filesystem.unstrip_protocol(path), "folder")
                return
        elif filesystem.exists(path):
            names = [path]
        else:
            raise JobError(f"input.manifest: there is no {url}")
    except (ImportError, ValueError) as error:
        raise JobError(f"input.manifest: {url}: {error}") from error
    except PermissionError as error:
        raise JobError(f"input.manifest: {url}: access denied; check the credentials in the environment") from error
    except get_store_error_types(url) as error:
        told = object_store.translate_error(error, url)
        advice = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" if url.startswith("s3") else ""
        raise JobError(f"input.manifest: {told.message}{advice if told.kind == 'denied' else ''}") from error
    for name in names:
        kind = detect_source_kind(name)
        if kind is None:
            raise JobError(f"input.manifest: {name}: a manifest is a folder, or ends in {', '.join(SOURCE_BY_ENDING)}")
        yield ManifestFile(filesystem.unstrip_protocol(name), kind)


def exclude_output_files(filesystem: Any, names: Iterable[str], output_prefix: str) -> list[str]:
    return sorted(name for name in names if not filesystem.unstrip_protocol(name).startswith(output_prefix))


def get_store_error_types(url: str) -> tuple[type[Exception], ...]:
    """What may come out of listing there."""
    kind = url.partition("://")[0]
    return (
        object_store.ObjectStore(kind).error_types
        if kind in {*object_store.ERROR_CLASSES, *object_store.SCHEME_ALIASES}
        else (OSError,)
    )


def read_with_retries(file: ManifestFile, operation: Callable[[], T]) -> T:
    """Read from a manifest file; retry errors that may pass, and stop the run on any other."""

    def decide_wait_s(error: Exception, failures: int) -> float:
        kind = retry_policy.classify_error(error)
        wait_s = retry_policy.decide_wait_s(retry_policy.OUTPUT_POLICIES, kind, failures)
        if wait_s is None:
            raise build_unreadable_error(file, error) from error
        return wait_s

    return retry_policy.run_with_retries(operation, get_store_error_types(file.url), decide_wait_s)


def read_manifest_schema(file: ManifestFile) -> pa.Schema:
    return read_with_retries(file, lambda: file.open_source().read_schema())


def build_unreadable_error(file: ManifestFile, error: Exception) -> StoppedError:
    reason = getattr(error, "strerror", None) or type(error.__cause__ or error).__name__
    return StoppedError(
        f"stopped: {file.url} cannot be read ({reason}); what was committed stays, the same command goes on"
    )


def detect_source_kind(name: str) -> str | None:
    return next((kind for ending, kind in SOURCE_BY_ENDING.items() if name.lower().endswith(ending)), None)
