"""Find the files of a manifest, and read them in spite of errors that pass.

A folder that holds no manifest file is a manifest itself: each media file in it is a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
import pyarrow as pa

from pipeline import retry_policy
from pipeline.errors import JobError, StoppedError
from pipeline.fetch.storage_clients import load_error_types, translate_error
from pipeline.job.spec import Job
from pipeline.manifest.sources.base import Source
from pipeline.registry import SOURCES, load_registered

ResultT = TypeVar("ResultT")


def load_source_class(kind: str) -> type[Source]:
    source_class: type[Source] = load_registered(SOURCES, kind, "source")
    return source_class


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file (or folder of media) of a manifest."""

    url: str
    kind: str  # a name in registry.SOURCES

    @property
    def source_class(self) -> type[Source]:
        return load_source_class(self.kind)

    def open_source(self) -> Source:
        return self.source_class(self.url)

    @property
    def base_folder(self) -> str:
        """The folder at which relative paths in the rows start."""
        return self.url.rpartition("/")[0] if self.source_class.file_endings else self.url


def list_manifest_files(job: Job) -> list[ManifestFile]:
    """Every file that the manifest names, in a fixed order."""
    path = job.output.path
    output_url = path.rstrip("/") if "://" in path else f"file://{os.path.abspath(path)}"
    files = [file for url in job.input.manifest for file in expand_url(url, f"{output_url}/")]
    if not files:
        raise JobError(f"input.manifest: nothing found at {', '.join(job.input.manifest)}")
    return files


def expand_url(url: str, output_prefix: str) -> list[ManifestFile]:
    """The files behind a URL. A folder or pattern may contain the job's own output, which is left out."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if any(wildcard in path for wildcard in "*?["):
            names = exclude_output_files(filesystem, filesystem.glob(path), output_prefix)
        elif filesystem.isdir(path):
            manifest_names = filter(is_found_in_folders, filesystem.find(path))
            names = exclude_output_files(filesystem, manifest_names, output_prefix)
            if not names:
                folder_kind = next(kind for kind in SOURCES if not load_source_class(kind).file_endings)
                return [ManifestFile(filesystem.unstrip_protocol(path), folder_kind)]
        elif filesystem.exists(path):
            names = [path]
        else:
            raise JobError(f"input.manifest: there is no {url}")
    except (ImportError, ValueError) as error:
        raise JobError(f"input.manifest: {url}: {error}") from error
    except PermissionError as error:
        raise JobError(f"input.manifest: {url}: access denied; check the credentials in the environment") from error
    except get_store_error_types(url) as error:
        problem = translate_error(error, url)
        advice = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" if url.startswith("s3") else ""
        raise JobError(f"input.manifest: {problem.message}{advice if problem.kind == 'denied' else ''}") from error
    return [ManifestFile(filesystem.unstrip_protocol(name), require_source_kind(name)) for name in names]


def exclude_output_files(filesystem: Any, names: Iterable[str], output_prefix: str) -> list[str]:
    return sorted(name for name in names if not filesystem.unstrip_protocol(name).startswith(output_prefix))


def detect_source_kind(name: str) -> str | None:
    return next((kind for kind in SOURCES if name.lower().endswith(load_source_class(kind).file_endings)), None)


def require_source_kind(name: str) -> str:
    if kind := detect_source_kind(name):
        return kind
    endings = ", ".join(ending for kind in SOURCES for ending in load_source_class(kind).file_endings)
    raise JobError(f"input.manifest: {name}: a manifest is a folder, or its name ends in {endings}")


def is_found_in_folders(name: str) -> bool:
    kind = detect_source_kind(name)
    return kind is not None and load_source_class(kind).is_found_in_folders


def get_store_error_types(url: str) -> tuple[type[Exception], ...]:
    return load_error_types(url.partition("://")[0])


def read_with_retries(file: ManifestFile, operation: Callable[[], ResultT]) -> ResultT:
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
        f"stopped: {file.url} cannot be read ({reason}); what was committed stays; run the same command to go on"
    )
