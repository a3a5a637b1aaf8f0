"""Objects in a folder that fsspec can reach: a local disk or an object store. They appear whole, once, or not at all.

Temporary errors are retried by pipeline/retry_policy.py; any other error is an OutputError and stops the run. The
libraries' own retries are off: on top of ours they would multiply the requests to a store that is already too busy.
When credentials expire, the client is made anew, so that it reads the ones that replaced them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import retry_policy
from pipeline.errors import OutputError
from pipeline.fetch.storage_clients import disable_client_retries, get_client_options, load_error_types
from pipeline.output import local_files
from pipeline.output.listing import (
    ObjectInfo,
    Page,
    S3Reply,
    fetch_s3_page,
    get_modified_time,
    list_local_pages,
    list_other_pages,
    list_s3_pages,
)
from pipeline.retry_policy import StorageRetries, Truncated, classify_error, describe_reason

T = TypeVar("T")
LOCAL_SCHEMES = ("file", "local")
CREATE_ONLY_SCHEMES = (*LOCAL_SCHEMES, "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # fsspec's others overwrite
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


def open_filesystem(path: str, **options: Any) -> tuple[Any, str]:
    """The filesystem of a path, and the path inside it."""
    if "::" in path:
        raise OutputError(f"{path}: URLs that chain filesystems with :: are not supported")
    try:
        return fsspec.core.url_to_fs(path, **options)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:  # an unknown scheme, or one whose package is missing
        raise OutputError(f"{path}: {error}") from error


class OutputStore:
    def __init__(self, path: str, *, max_attempts: float = math.inf):
        self.path, self.max_attempts = path.rstrip("/"), max_attempts
        self.retries_enabled = True  # until a retry was in vain: later calls then fail at once
        self._connect()
        self.protocol = list_protocols(self.filesystem)[0]
        self.error_types = load_error_types(self.protocol)

    def _connect(self) -> None:
        scheme = self.path.partition("://")[0] if "://" in self.path else ""
        options = get_client_options(scheme)
        self.filesystem, self.root = open_filesystem(self.path, skip_instance_cache=bool(scheme), **options)
        disable_client_retries(self.filesystem, scheme)

    @property
    def is_local(self) -> bool:
        return self.protocol in LOCAL_SCHEMES

    def create_object(self, name: str, data: bytes, check_allowed: Callable[[], object] = lambda: None) -> bool:
        """Create an object; False if it exists already. `check_allowed` may raise before each attempt."""
        create = local_files.create_file if self.is_local else self._put_if_absent
        return self.run_with_retries(name, lambda: create(f"{self.root}/{name}", data, check_allowed))

    def check_create_only(self, name: str) -> None:
        """Raise an OutputError if the store replaces an object that is to be created. The name must be unused."""
        try:
            if self.create_object(name, b"first") and self.create_object(name, b"second"):
                raise OutputError(
                    f"{self.path}: this store replaces objects that must only be created (it ignores the header "
                    "If-None-Match), so two runs could overwrite each other's answers; choose another output.path"
                )
        finally:
            with suppress(OutputError):  # some roles may not delete
                self.delete_object(name)

    def _put_if_absent(self, path: str, data: bytes, check_allowed: Callable[[], object]) -> bool:
        check_allowed()
        try:
            self.filesystem.pipe_file(path, data, mode="create")
        except FileExistsError:
            return self._is_own_object(path, data)
        except OSError as error:  # s3fs raises it for a failed precondition on some servers
            if "recondition" in f"{error} {error.__cause__}":
                return self._is_own_object(path, data)
            raise
        return True

    def _is_own_object(self, path: str, data: bytes) -> bool:
        """Whether the existing object is ours: if a reply is lost, the repeated PUT is refused because of the first."""
        return self.filesystem.size(path) == len(data) and self._read_complete(path) == data

    def overwrite(self, name: str, data: bytes) -> None:
        """Create or replace an object that is not an answer."""
        replace = local_files.replace_file if self.is_local else self.filesystem.pipe_file
        self.run_with_retries(name, lambda: replace(f"{self.root}/{name}", data))

    def write_small_file(self, name: str, data: bytes) -> None:
        """The same for one of many files, which are all safe after `sync_files`."""
        if not self.is_local:
            return self.overwrite(name, data)
        path = f"{self.root}/{name}"
        return self.run_with_retries(name, lambda: local_files.replace_file(path, data, sync=False))

    def sync_files(self) -> None:
        if self.is_local:
            self.run_with_retries("", lambda: local_files.sync_files(self.root))

    def upload_file(self, name: str, source: Path) -> None:
        """Create or replace an object from a local file."""
        copy = local_files.copy_file if self.is_local else self.filesystem.put_file
        self.run_with_retries(name, lambda: copy(source, f"{self.root}/{name}"))

    def read_object(self, name: str) -> bytes:
        return self.run_with_retries(name, lambda: self._read_complete(f"{self.root}/{name}"))

    def read_info(self, name: str) -> ObjectInfo:
        info = self.run_with_retries(name, lambda: self.filesystem.info(f"{self.root}/{name}"))
        return ObjectInfo(info.get("size") or 0, get_modified_time(info))

    def has_object(self, name: str) -> bool:
        """One request for a small object. Asking fsspec for its existence would also list the folder of that name."""
        try:
            self.run_with_retries(name, lambda: self.filesystem.cat_file(f"{self.root}/{name}"), missing_ok=True)
        except FileNotFoundError:
            return False
        return True

    def _read_complete(self, path: str) -> bytes:
        data = bytes(self.filesystem.cat_file(path))
        if data[-4:] != b"PAR1" if path.endswith(".parquet") else len(data) != self.filesystem.size(path):
            raise Truncated(f"{path} is cut short")
        return data

    def read_parquet_metadata(self, name: str) -> pq.FileMetaData:
        """Read a Parquet file's footer without its rows."""

        def read() -> pq.FileMetaData:
            with self.filesystem.open(f"{self.root}/{name}", "rb") as file:
                try:
                    return pq.read_metadata(file)
                except pa.ArrowInvalid as error:
                    raise Truncated(f"{name} is cut short") from error

        return self.run_with_retries(name, read)

    def delete_object(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.run_with_retries(name, lambda: self.filesystem.rm_file(f"{self.root}/{name}"), missing_ok=True)

    def list_names(self, folder: str) -> set[str]:
        """The objects at any depth below a folder, by their paths in it; empty if there is no such folder."""
        return set(self.list_objects(folder))

    def list_objects(self, folder: str) -> dict[str, ObjectInfo]:
        return self.collect_objects(folder, lambda pages: dict(chain.from_iterable(pages)))

    def collect_objects(self, folder: str, collect: Callable[[Iterator[Page]], T], first_characters: str = "") -> T:
        """List a folder; what `collect` makes of the pages is the result. If the listing fails, both begin anew.

        Where all names begin with one of `first_characters`, a long listing may be divided by them.
        """
        try:
            return self.run_with_retries(
                folder, lambda: collect(self._open_pages(folder, first_characters)), missing_ok=True
            )
        except FileNotFoundError:
            return collect(iter(()))

    def _open_pages(self, folder: str, first_characters: str) -> Iterator[Page]:
        root = f"{self.root}/{folder}".rstrip("/")

        def fetch_page(characters: str, token: str) -> S3Reply:  # a long listing does not begin anew for one page
            return self.run_with_retries(
                folder, lambda: fetch_s3_page(self.filesystem, root, characters, token), missing_ok=True
            )

        if self.is_local:
            pages = list_local_pages(root)
        elif self.protocol == "s3":
            pages = list_s3_pages(fetch_page, first_characters)
        else:
            pages = list_other_pages(self.filesystem, root)
        for page in pages:  # without the temporary files of killed writers
            yield [entry for entry in page if entry[0].rpartition("/")[2][:1] not in ("", ".")]

    def list_top_entries(self) -> set[str]:
        """The names of the files and folders at the top."""
        try:
            paths = self.run_with_retries("", lambda: self.filesystem.ls(self.root, detail=False), missing_ok=True)
        except FileNotFoundError:
            return set()
        return {path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != self.root}

    def run_with_retries(self, name: str, operation: Callable[[], T], *, missing_ok: bool = False) -> T:
        used_filesystem = self.filesystem
        retries = StorageRetries(f"{self.path}/{name}".rstrip("/"), self.max_attempts)

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
            wait_s = retries.decide_wait_s(kind, error, failures) if self.retries_enabled else None
            if wait_s is None:
                self.retries_enabled = False
                raise OutputError(f"{self.path}/{name}: {describe_error(kind, error, failures)}") from error
            if kind == "credentials" and self.filesystem is used_filesystem:  # no other thread has reconnected
                self._connect()
            return wait_s

        return retry_policy.run_with_retries(attempt, self.error_types, decide_wait_s)


def describe_error(kind: str, error: Exception, attempts: int) -> str:
    tried = f", after {attempts} attempts" if attempts > 1 else ""
    problem = f"{ERROR_ADVICE[kind]} ({describe_reason(error)}{tried})"
    if kind == "refused":
        return f"{problem}; choose another folder"
    return f"{problem}. Committed answers are kept; run the same command again to continue"


def list_protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
