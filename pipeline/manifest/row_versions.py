"""What `input.version` adds to the questions of rows: the versions of their media.

Planning reads the versions, and a chunk carries a digest of those of each row, so that any process finds the same
questions. A worker reads the versions again: an answer about another version than the planned one would be taken for an
answer about that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from pipeline.errors import FetchError
from pipeline.fetch.access import redact_source
from pipeline.fetch.versions import Version, VersionReader

DIGEST_BYTES = 8
NO_DIGEST = bytes(DIGEST_BYTES)  # of a row without URIs


def digest_row_versions(uri_lists: Sequence[Sequence[str]], reader: VersionReader) -> list[bytes]:
    """A digest for each row."""
    return [digest_versions(versions) for versions in read_row_versions(uri_lists, reader)]


def check_row_versions(
    uri_lists: Sequence[Sequence[str]], planned_digests: Sequence[bytes], reader: VersionReader
) -> list[tuple[str, ...] | FetchError]:
    """The versions of each row; an error where one cannot be read or is not the planned one."""
    results: list[tuple[str, ...] | FetchError] = []
    for uris, versions, digest in zip(uri_lists, read_row_versions(uri_lists, reader), planned_digests, strict=True):
        known = tuple(version for version in versions if isinstance(version, str))
        if len(known) < len(versions):
            results.append(next(version for version in versions if isinstance(version, FetchError)))
        elif digest_versions(versions) != digest:
            shown = ", ".join(map(redact_source, uris))
            problem = "has another version than when the run was planned; run the same command again to ask about it"
            results.append(FetchError("changed", f"{shown}: {problem}"))
        else:
            results.append(known)
    return results


def read_row_versions(uri_lists: Sequence[Sequence[str]], reader: VersionReader) -> Iterator[list[Version]]:
    versions = iter(reader.read_versions([uri for uris in uri_lists for uri in uris]))
    return ([next(versions) for _ in uris] for uris in uri_lists)


def digest_versions(versions: Sequence[Version]) -> bytes:
    if not versions:
        return NO_DIGEST
    text = "\0".join(version if isinstance(version, str) else "" for version in versions)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
