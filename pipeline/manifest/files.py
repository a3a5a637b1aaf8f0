"""Find the files of a manifest, and read them in spite of errors that pass.

A folder that holds no manifest file is a manifest itself: each media file in it is a row. The same holds for patterns.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import fsspec
import pyarrow as pa

from pipeline import retry_policy
from pipeline.command_text import tidy_path
from pipeline.errors import JobError, StoppedError
from pipeline.fetch.storage_clients import load_error_types, translate_error
from pipeline.job.spec import Job
from pipeline.manifest.sources.base import Source, TablePartSource
from pipeline.manifest.sources.folder import (
    build_empty_folder_error,
    find_through_links,
    get_media_folder,
    is_media_name,
    require_readable_folders,
)
from pipeline.manifest.tables import expand_braces, find_catalog_table, find_table, load_source_class, split_choice
from pipeline.registry import SOURCES

ResultT = TypeVar("ResultT")
OUTPUT_FILE = re.compile(r"/(data|errors)/fp=[0-9a-f]{12}/[^/]+$")
MEDIA_KIND, LINKED_MEDIA_KIND = "folder", "linked_folder"  # the names in SOURCES of folders and patterns of media
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of Hugging Face's imagefolder
FILE_NAME_COLUMN = "file_name"  # in them
MAX_LISTED_ENDINGS = 4
MAX_LISTED_AT_ONCE = 16  # URLs
EXPORT_MARK = "/_export.json"  # the file that every export has in its folder


def ignore_note(note: str) -> None:
    """For callers that show no notes."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file (or folder of media) of a manifest."""

    url: str
    kind: str  # a name in registry.SOURCES
    place: str = ""  # of its folder, as seen from the folder that the manifest starts from; empty: the same
    part: str = ""  # of a table that is a folder: what a TablePartSource reads

    @property
    def source_class(self) -> type[Source]:
        return load_source_class(self.kind)

    def open_source(self) -> Source:
        source_class = self.source_class
        return (
            source_class(self.url, self.part) if issubclass(source_class, TablePartSource) else source_class(self.url)
        )

    @property
    def base_folder(self) -> str:
        """The folder at which relative paths in the rows start."""
        return self.url.rpartition("/")[0] if self.source_class.file_endings else get_media_folder(self.url)


def list_manifest_files(job: Job, say: Callable[[str], None] = ignore_note) -> list[ManifestFile]:
    """Every file that the manifest names, in a fixed order. `say` takes notes about files that are left out."""
    path = job.output.path
    output_url = path.rstrip("/") if "://" in path else f"file://{os.path.abspath(path)}"
    urls = [url for named in job.input.manifest for url in ([named] if os.path.exists(named) else expand_braces(named))]
    with ThreadPoolExecutor(MAX_LISTED_AT_ONCE) as threads:
        listings = list(
            threads.map(lambda url: expand_url(url, output_url, say, follow_links=job.input.follow_links), urls)
        )
    root = listings[0].folder
    files = [replace(file, place=describe_place(file, root)) for listing in listings for file in listing.files]
    if not files:
        places = ", ".join(f"{url}{describe_folder(url)}" for url in job.input.manifest)
        raise JobError(f"input.manifest: nothing found at {places}")
    folders = dict.fromkeys(file.base_folder for file in files if os.path.basename(file.url) in METADATA_FILES)
    if len(folders) > 1 and not job.input.media:  # the same file_name stands for another picture in each
        raise JobError(
            f"input.manifest: {' and '.join(folders)} have metadata of their own; give each a job of its own"
        )
    return files


class ManifestListing(NamedTuple):
    """What one URL of a manifest leads to."""

    folder: str  # the one that the URL names, or in which its file or pattern is
    files: list[ManifestFile]


def describe_place(file: ManifestFile, root: str) -> str:
    place = posixpath.relpath(file.base_folder, root)
    return "" if place == "." else place


def expand_url(url: str, output_url: str, say: Callable[[str], None], *, follow_links: bool) -> ManifestListing:
    if "::" in url:
        raise JobError(f"input.manifest: {url}: URLs that chain filesystems with :: are not supported")
    url, choice = split_choice(url)
    try:
        filesystem, path = fsspec.core.url_to_fs(find_catalog_table(url))
        if table := find_table(filesystem, path, choice):
            return ManifestListing(table.url, [ManifestFile(table.url, table.kind, part=part) for part in table.parts])
        return list_files(url, filesystem, path, output_url, say, follow_links=follow_links)
    except (ImportError, ValueError) as error:
        raise JobError(f"input.manifest: {url}: {error}") from error
    except PermissionError as error:
        raise JobError(f"input.manifest: {url}: access denied; check the credentials in the environment") from error
    except get_store_error_types(url) as error:
        problem = translate_error(error, url)
        advice = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" if url.startswith("s3") else ""
        raise JobError(f"input.manifest: {problem.message}{advice if problem.kind == 'denied' else ''}") from error


def list_files(
    url: str, filesystem: Any, path: str, output_url: str, say: Callable[[str], None], *, follow_links: bool
) -> ManifestListing:
    media_kind = MEDIA_KIND
    if filesystem.unstrip_protocol(path).rstrip("/") == output_url:
        place = "the manifest's own folder" if filesystem.isdir(path) else "the manifest itself"
        raise JobError(f"output.path is {url}, {place}; choose another folder for the answers")
    if any(wildcard in path for wildcard in "*?["):
        folder = get_media_folder(path)
        names = leave_out_outputs(filesystem, folder, filesystem.glob(path), output_url, say)
        tables = names if any(map(detect_source_kind, names)) or not has_media(names, folder) else None
    elif filesystem.isdir(path):
        walks_links = follow_links and "file" in filesystem.protocol
        if "file" in filesystem.protocol and not follow_links:
            require_readable_folders(path)
        found = find_through_links(path) if walks_links else filesystem.find(path)
        folder, names = path, leave_out_outputs(filesystem, path, found, output_url, say)
        media_kind = LINKED_MEDIA_KIND if walks_links else MEDIA_KIND
        tables = choose_tables(filesystem, path, names)
    elif filesystem.exists(path):
        folder, names = path.rpartition("/")[0], [path]
        tables = None if has_media(names, folder) else names
    else:
        raise JobError(f"input.manifest: there is no {url}{describe_folder(url)}")
    folder_url = filesystem.unstrip_protocol(folder or "/")
    if tables is None:
        say_left_out(filesystem, folder, names, say)
        return ManifestListing(folder_url, [ManifestFile(filesystem.unstrip_protocol(path), media_kind)])
    files = [ManifestFile(filesystem.unstrip_protocol(name), require_source_kind(name)) for name in tables]
    files = leave_out_empty_files(filesystem, files, say) if len(files) > 1 else files
    return ManifestListing(folder_url, files)


def leave_out_empty_files(filesystem: Any, files: list[ManifestFile], say: Callable[[str], None]) -> list[ManifestFile]:
    """Programs that write many JSONL or CSV files at once write empty ones, too. An empty Parquet file is broken."""
    empty = [file for file in files if file.source_class.infers_types and filesystem.size(file.url) == 0]
    if not 0 < len(empty) < len(files):
        return files
    say(f"left out of the manifest: {count_files(len(empty))} without a byte, such as {empty[0].url}")
    return [file for file in files if file not in empty]


def choose_tables(filesystem: Any, folder: str, names: Sequence[str]) -> list[str] | None:
    """The tables in a folder that are the manifest. None where its media are."""
    tables = list(filter(is_found_in_folders, names)) or find_metadata_tables(filesystem, names)
    if not tables and not has_media(names, folder):
        tables = list(filter(detect_source_kind, names))
        if not tables:
            raise build_empty_folder_error(filesystem.unstrip_protocol(folder))
    return tables or None


def has_media(names: Iterable[str], folder: str) -> bool:
    return any(is_media_name(name, folder) for name in names)


def leave_out_outputs(
    filesystem: Any, folder: str, found: Iterable[str], output_url: str, say: Callable[[str], None]
) -> list[str]:
    """The names without those of the job's own output, and without the outputs and exports of other jobs below the
    folder: rows that were taken out of the manifest would come back from there. A URL that leads into an output or an
    export reads it."""
    names = sorted(found)
    exports = tuple(
        name.removesuffix(EXPORT_MARK) + "/"
        for name in names
        if name.endswith(EXPORT_MARK) and name != f"{folder}{EXPORT_MARK}"
    )
    own, others, rest = [], [], []
    for name in names:
        if filesystem.unstrip_protocol(name).startswith(f"{output_url}/"):
            own.append(name)
        elif OUTPUT_FILE.search(name, len(folder)) or name.startswith(exports):
            others.append(name)
        else:
            rest.append(name)
    if not rest and any(detect_source_kind(name) and not OUTPUT_FILE.search(name) for name in own):
        raise JobError(f"output.path contains the manifest in {folder}; choose another folder for the answers")
    if others := list(filter(detect_source_kind, others)):
        place = f"in outputs and exports of other jobs, such as {others[0]}"
        say(f"left out of the manifest: {count_files(len(others))} {place}")
    return rest


def say_left_out(filesystem: Any, folder: str, names: Sequence[str], say: Callable[[str], None]) -> None:
    """One line about the files of a manifest of media that are no rows."""
    left_out = [name for name in names if not is_media_name(name, folder)]
    links = [name for name in left_out if filesystem.isdir(name)] if "file" in filesystem.protocol else []
    endings = Counter(os.path.splitext(name)[1].lower() or "no ending" for name in left_out if name not in links)
    counts = [f"{count:,} {ending}" for ending, count in endings.most_common(MAX_LISTED_ENDINGS)]
    if len(endings) > MAX_LISTED_ENDINGS:
        counts.append("others")
    if endings:
        listed = f"{count_files(endings.total())} of {tidy_path(folder)} that are no media"
        say(f"left out of the manifest: {listed}: {', '.join(counts)}")
    if links:
        advice = f"such as {tidy_path(links[0])}; input.follow_links: true reads them"
        say(f"left out of the manifest: {len(links):,} linked folder{'s' * (len(links) != 1)}, {advice}")


def count_files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def describe_folder(url: str) -> str:
    """On a cluster, relative paths start at a folder that the user does not know."""
    return "" if "://" in url or os.path.isabs(url) else f" in {os.getcwd()}"


def detect_source_kind(name: str) -> str | None:
    return next((kind for kind in SOURCES if name.lower().endswith(load_source_class(kind).file_endings)), None)


def require_source_kind(name: str) -> str:
    if kind := detect_source_kind(name):
        return kind
    endings = ", ".join(ending for kind in SOURCES for ending in load_source_class(kind).file_endings)
    raise JobError(f"input.manifest: {name}: a manifest is a folder, or its name ends in {endings}")


def find_metadata_tables(filesystem: Any, names: Sequence[str]) -> list[str]:
    """Tables of labels may lie beside media. Those of Hugging Face's imagefolder name the media."""
    tables = [name for name in names if os.path.basename(name) in METADATA_FILES]
    return [
        name
        for name in tables
        if FILE_NAME_COLUMN
        in ManifestFile(filesystem.unstrip_protocol(name), require_source_kind(name)).open_source().read_schema().names
    ]


def is_found_in_folders(name: str) -> bool:
    kind = detect_source_kind(name)
    return kind is not None and load_source_class(kind).is_found_in_folders


def get_store_error_types(url: str) -> tuple[type[Exception], ...]:
    return load_error_types(url.partition("://")[0])


def read_with_retries(file: ManifestFile, operation: Callable[[], ResultT], *, has_started: bool = True) -> ResultT:
    """Read from a manifest file; retry errors that may pass, and end the command on any other. Before a run has
    started, only the first tries are worth a wait, and a file that cannot be read is a mistake of the job."""
    retries = retry_policy.StorageRetries(file.url, math.inf if has_started else retry_policy.FIRST_CONTACT_ATTEMPTS)

    def decide_wait_s(error: Exception, failures: int) -> float:
        wait_s = retries.decide_wait_s(retry_policy.classify_error(error), error, failures)
        if wait_s is None and has_started:
            raise build_unreadable_error(file, error) from error
        if wait_s is None:
            reason = retry_policy.describe_reason(error)
            raise JobError(f"input.manifest: {file.url} cannot be read ({reason})") from error
        return wait_s

    return retry_policy.run_with_retries(operation, get_store_error_types(file.url), decide_wait_s)


def read_manifest_schema(file: ManifestFile) -> pa.Schema:
    return read_with_retries(file, lambda: file.open_source().read_schema(), has_started=False)


def build_unreadable_error(file: ManifestFile, error: Exception) -> StoppedError:
    return StoppedError(
        f"stopped: {file.url} cannot be read ({retry_policy.describe_reason(error)}); what was committed stays; "
        "run the same command to go on"
    )
