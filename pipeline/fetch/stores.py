"""Decides which buckets, containers and hub repositories a job may read.

The workers' credentials may open more stores than a manifest should: whoever writes a manifest must not choose among
all that the workers can read. The rule is applied to the path that a store's client is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.errors import FetchError
from pipeline.fetch.access import STORE_SCHEMES, redact_source
from pipeline.fetch.storage_clients import get_provider

HUB_REPOSITORY_TYPES = ("datasets", "spaces", "buckets")  # before the name of a repository that is no model


def list_stores(urls: Iterable[str]) -> tuple[str, ...]:
    """The stores that URLs name, each once; other URLs name none.

    >>> list_stores(["s3a://acme/in/*.parquet", "s3://acme/out", "hf://datasets/acme/scans@main/a.parquet", "file:///m"])
    ('s3://acme', 'hf://datasets/acme/scans')
    """
    parsed_urls = [url.partition("://") for url in urls]
    return tuple(
        dict.fromkeys(_format_store(scheme, path) for scheme, _, path in parsed_urls if scheme.lower() in STORE_SCHEMES)
    )


def check_store(scheme: str, path: str, allowed_stores: Sequence[str]) -> None:
    """`path` is without its scheme. A store may also be a folder, which allows what lies below it."""
    place = get_provider(scheme), *_split_path(scheme, path)
    for store in allowed_stores:
        store_scheme, _, store_path = store.rstrip("/").partition("://")
        allowed_place = get_provider(store_scheme), *_split_path(store_scheme, store_path)
        if place[: len(allowed_place)] == allowed_place:
            return
    store, allowed = _format_store(scheme, path), ", ".join(allowed_stores) or "no store"
    problem = f"{store} is not among the stores that rows may name ({allowed}); list it under input.stores to allow it"
    raise FetchError("store", f"{redact_source(f'{scheme}://{path}')}: {problem}")


def _format_store(scheme: str, path: str) -> str:
    provider, parts = get_provider(scheme.lower()), _split_path(scheme.lower(), path)
    length = 1
    if provider == "hf":
        length = _find_repository_name(parts) + 1
    elif parts[0].endswith(":accesspoint"):  # of S3: arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME
        length = 2
    return f"{provider}://{'/'.join(parts[:length])}"


def _split_path(scheme: str, path: str) -> list[str]:
    """The parts of a path, without the revision of a hub repository and without the account of an Azure container.

    >>> _split_path("hf", "acme/model@v1/a.png"), _split_path("abfs", "scans@acme.dfs.core.windows.net/a.png")
    (['acme', 'model', 'a.png'], ['scans', 'a.png'])
    """
    parts = path.lstrip("/").split("/")
    provider = get_provider(scheme)
    name_index = {"hf": _find_repository_name(parts), "az": 0}.get(provider, len(parts))
    return [part.partition("@")[0] if index == name_index else part for index, part in enumerate(parts)]


def _find_repository_name(parts: Sequence[str]) -> int:
    return 2 if parts[0] in HUB_REPOSITORY_TYPES else 1
