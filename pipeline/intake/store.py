"""An object in a store (s3, gs, az, hf, ...) -> its bytes, through fsspec.

One ranged read brings most pictures whole; what is larger is asked for its size first and read in
parts, so that no limit is passed unseen. fsspec keeps one client and its connections for a process.
Credentials are the environment's, never the URI's.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

import fsspec

from pipeline.errors import FetchError
from pipeline.intake.blob import Sink
from pipeline.intake.guard import shown
from pipeline.intake.retry import Passing

FIRST, PART = 4 << 20, 16 << 20
RANGES = ("InvalidRange", "requested range", "416")  # how stores say that an object ends before it begins
PASSING = ("SlowDown", "Throttl", "InternalError", "ServiceUnavailable", "RequestTimeout", "ExpiredToken")
ERRORS = {  # what the libraries raise besides OSError
    "s3": ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError", "aiohttp:ClientError"),
    "gs": ("gcsfs.retry:HttpError", "google.auth.exceptions:GoogleAuthError", "aiohttp:ClientError"),
    "az": ("azure.core.exceptions:AzureError",),
    "hf": ("huggingface_hub.errors:HfHubHTTPError", "huggingface_hub.errors:HFValidationError"),
    "oss": ("aiooss2.exceptions:OSSError", "oss2.exceptions:OssError", "aiohttp:ClientError"),
}
Errors = tuple[type[Exception], ...]
ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


def open_store(scheme: str) -> tuple[Any, Errors]:
    """A filesystem, and what its library raises."""
    try:
        names = [name.split(":") for name in ERRORS[ALIASES.get(scheme, scheme)]]
        return fsspec.filesystem(scheme), (OSError, *(getattr(import_module(module), name) for module, name in names))
    except ImportError as error:
        raise FetchError(
            "scheme", f"{scheme}:// needs a package that is not installed: {error.name or error}"
        ) from error


async def read(uri: str, sink: Sink, *, store: Any, errors: Errors) -> None:
    """Feeds the sink. Raises Passing for what is worth another attempt."""
    try:
        await _read(store, store._strip_protocol(uri), sink)
    except FileNotFoundError as error:
        raise FetchError("not_found", f"{shown(uri)}: no such object") from error
    except IsADirectoryError as error:
        raise FetchError("not_found", f"{shown(uri)}: a folder, not an object") from error
    except PermissionError as error:
        raise FetchError("denied", f"{shown(uri)}: access denied; check the credentials of the workers") from error
    except errors as error:
        raise _translated(error, uri) from error


def _translated(error: Exception, uri: str) -> FetchError:
    """Libraries wrap each other; the names and codes in the chain tell what is the matter."""
    chain = f"{type(error).__name__} {error} {error.__cause__ or ''}"
    if "Credential" in chain or "GoogleAuth" in chain:
        return FetchError("denied", f"{shown(uri)}: the workers have no credentials for this store")
    if "ValidationError" in chain or "Invalid bucket" in chain:
        return FetchError("uri", f"{shown(uri)}: not a name this store could have")
    kind = "unavailable" if any(word in chain for word in PASSING) else "connection"
    return Passing(kind, f"{shown(uri)}: {type(error.__cause__ or error).__name__}")


async def _read(store: Any, path: str, sink: Sink) -> None:
    try:
        chunk = await _range(store, path, 0, FIRST)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | PermissionError) or not any(word in str(error) for word in RANGES):
            raise
        return  # empty
    if len(chunk) < FIRST:
        return sink.feed(chunk)
    info = await (store._info(path) if store.async_impl else asyncio.to_thread(store.info, path))
    size = info["size"]
    sink.expect(size)
    sink.feed(chunk)
    for start in range(FIRST, size, PART):
        end = min(start + PART, size)
        chunk = await _range(store, path, start, end)
        if len(chunk) < end - start:
            raise Passing("truncated", f"{sink.uri}: shorter than the store says")
        sink.feed(chunk)


async def _range(store: Any, path: str, start: int, end: int) -> bytes:
    if store.async_impl:
        return bytes(await store._cat_file(path, start=start, end=end))
    return bytes(await asyncio.to_thread(store.cat_file, path, start, end))
