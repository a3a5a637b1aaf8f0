"""An output folder, wherever fsspec reaches -> objects that appear whole, once, or not at all.

Trouble that may pass is waited out as pipeline/retry_policy.py says; the rest is an OutputError
that stops the run. Retries are ours alone: each library's own on top would make a hundred requests of one, to a store
that says it has too many. A client whose credentials have expired is made anew, and finds what was put in their place.
"""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import fsspec

from pipeline import retry_policy
from pipeline.errors import OutputError
from pipeline.fetch.storage_clients import disable_client_retries, get_client_options, load_error_types
from pipeline.retry_policy import Truncated, classify_error

T = TypeVar("T")
ERROR_ADVICE = {
    "denied": "access denied; check output.path and the credentials in the environment of every node",
    "credentials": "the credentials have expired or are not valid; renew them on every node",
    "full": "no space is left; make room",
    "not_found": "is not there (any more): a bucket or a file was deleted",
    "refused": "cannot be used as an output",
    "truncated": "is cut short; delete it, and its rows are asked again",
    "unavailable": "the store is too busy",
    "timeout": "the store is silent",
    "connection": "the store cannot be reached",
}


class ObjectInfo(NamedTuple):
    size: int
    modified_at: float | None  # by the store's own clock


def open_filesystem(path: str, **options: Any) -> tuple[Any, str]:
    """The filesystem of a path and what it is called there."""
    try:
        return fsspec.core.url_to_fs(path, **options)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:  # a scheme that nobody knows, or whose package is missing
        raise OutputError(f"{path}: {error}") from error


class OutputStore:
    def __init__(self, path: str):
        self.path = path.rstrip("/")
        self.retries_enabled = True  # until it has waited in vain once
        self.connect()
        self.error_types = load_error_types(list_protocols(self.filesystem)[0])

    def connect(self) -> None:
        """A client of its own."""
        scheme = self.path.partition("://")[0] if "://" in self.path else ""
        options = get_client_options(scheme)
        self.filesystem, self.root = open_filesystem(self.path, skip_instance_cache=bool(scheme), **options)
        disable_client_retries(self.filesystem, scheme)

    @property
    def is_local(self) -> bool:
        return "file" in list_protocols(self.filesystem)

    def create_object(self, name: str, data: bytes) -> bool:
        """Create an object whole, or not at all; False where it was there before."""
        path = f"{self.root}/{name}"
        return self.run_with_retries(
            name, lambda: create_local_file(path, data) if self.is_local else self.put_if_absent(path, data)
        )

    def put_if_absent(self, path: str, data: bytes) -> bool:
        try:
            self.filesystem.pipe_file(path, data, mode="create")
        except FileExistsError:
            return self.is_own_object(path, data)
        except OSError as error:  # what s3fs makes of a failed precondition on some servers
            if "recondition" in f"{error} {error.__cause__}":
                return self.is_own_object(path, data)
            raise
        return True

    def is_own_object(self, path: str, data: bytes) -> bool:
        """A refused PUT may be one's own, sent twice after a lost reply: the content tells."""
        return self.filesystem.size(path) == len(data) and self.read_complete(path) == data

    def overwrite(self, name: str, data: bytes) -> None:
        """For what is not an answer: whoever writes last is right."""
        path = f"{self.root}/{name}"
        self.run_with_retries(
            name, lambda: replace_local_file(path, data) if self.is_local else self.filesystem.pipe_file(path, data)
        )

    def upload_file(self, name: str, source: Path) -> None:
        """The same for a large file of this machine."""
        path = f"{self.root}/{name}"
        self.run_with_retries(
            name, lambda: copy_to_local_file(source, path) if self.is_local else self.filesystem.put_file(source, path)
        )

    def read_object(self, name: str) -> bytes:
        return self.run_with_retries(name, lambda: self.read_complete(f"{self.root}/{name}"))

    def read_complete(self, path: str) -> bytes:
        data = bytes(self.filesystem.cat_file(path))
        if data[-4:] != b"PAR1" if path.endswith(".parquet") else len(data) != self.filesystem.size(path):
            raise Truncated(f"{path} is cut short")
        return data

    def delete_object(self, name: str) -> None:
        try:
            self.run_with_retries(name, lambda: self.filesystem.rm_file(f"{self.root}/{name}"), missing_ok=True)
        except FileNotFoundError:
            return

    def list_names(self, folder: str) -> set[str]:
        """The objects below a folder, by their paths in it; empty where there is none."""
        return set(self.list_objects(folder))

    def list_objects(self, folder: str) -> dict[str, ObjectInfo]:
        try:
            found = self.run_with_retries(
                folder, lambda: self.filesystem.find(f"{self.root}/{folder}", detail=True), missing_ok=True
            )
        except FileNotFoundError:
            return {}
        return {
            path.rpartition(f"/{folder}/")[2]: ObjectInfo(info.get("size") or 0, get_modified_time(info))
            for path, info in found.items()
            if path.rpartition("/")[2][:1] not in ("", ".")  # what a killed write left
        }

    def run_with_retries(self, name: str, operation: Callable[[], T], *, missing_ok: bool = False) -> T:
        used_filesystem = self.filesystem

        def attempt() -> T:
            nonlocal used_filesystem
            used_filesystem = self.filesystem
            result = operation()
            self.retries_enabled = True
            return result

        def decide_wait_s(error: Exception, failures: int) -> float:
            if missing_ok and isinstance(error, FileNotFoundError):
                raise error
            kind = classify_error(error)
            wait_s = retry_policy.decide_wait_s(retry_policy.OUTPUT_POLICIES, kind, failures)
            if wait_s is None or not self.retries_enabled:
                self.retries_enabled = False
                raise OutputError(f"{self.path}/{name}: {describe_error(kind, error, failures)}") from error
            if kind == "credentials" and self.filesystem is used_filesystem:  # no other thread has reconnected
                self.connect()
            return wait_s

        return retry_policy.run_with_retries(attempt, self.error_types, decide_wait_s)


def describe_error(kind: str, error: Exception, attempts: int) -> str:
    reason = getattr(error, "strerror", None) or type(error.__cause__ or error).__name__
    tried = f", after {attempts} attempts" if attempts > 1 else ""
    return f"{ERROR_ADVICE[kind]} ({reason}{tried}). What was committed stays; the same command goes on from there"


def list_protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def get_modified_time(info: dict[str, Any]) -> float | None:
    value = next((info[key] for key in ("mtime", "LastModified", "last_modified", "updated") if key in info), None)
    return value.timestamp() if isinstance(value, datetime) else value if isinstance(value, float) else None


def create_local_file(path: str, data: bytes) -> bool:
    """A local object appears whole: written beside, under a name that readers pass over, then linked to its own."""
    beside = write_temp_file(path, data)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(beside)
    return True


def replace_local_file(path: str, data: bytes) -> None:
    os.replace(write_temp_file(path, data), path)


def copy_to_local_file(source: Path, path: str) -> None:
    with open(source, "rb") as data:
        os.replace(write_temp_file(path, data), path)


def write_temp_file(path: str, data: bytes | IO[bytes]) -> str:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    beside = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(beside, "wb") as file:
            shutil.copyfileobj(io.BytesIO(data) if isinstance(data, bytes) else data, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if os.path.exists(beside):
            os.unlink(beside)
        raise
    return beside
