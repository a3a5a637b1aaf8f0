"""How fsspec's clients are set up, and what their errors mean. Media, manifests and outputs share it.

A client never retries by itself: its retries on top of ours would make a hundred requests of one, to a store that
says it has too many.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from importlib import import_module
from typing import Any

from pipeline import retry_policy
from pipeline.errors import FetchError
from pipeline.fetch.access import redact_source
from pipeline.fetch.remote_object import ObjectChangedError, TransientError

SCHEME_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
ERROR_CLASSES = {  # what each library raises besides OSError
    "s3": ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError", "aiohttp:ClientError"),
    "gs": ("gcsfs.retry:HttpError", "google.auth.exceptions:GoogleAuthError", "aiohttp:ClientError"),
    "az": ("azure.core.exceptions:AzureError",),
    "hf": ("huggingface_hub.errors:HfHubHTTPError", "huggingface_hub.errors:HFValidationError"),
    "oss": ("aiooss2.exceptions:OSSError", "oss2.exceptions:OssError", "aiohttp:ClientError"),
}
S3_OPTIONS = {
    "config_kwargs": {"max_pool_connections": 32, "retries": {"total_max_attempts": 1}},
    "use_listings_cache": False,
}
VERSION_KEYS = {  # by input.version, in what the clients say about an object
    "etag": ("ETag", "etag", "generation", "blob_id"),
    "mtime": ("LastModified", "last_modified", "updated", "mtime"),
}
ERROR_MESSAGES = {
    "credentials": "the credentials of the workers have expired or are not valid; renew them and run again",
    "denied": "access denied; check the workers' credentials and what they allow",
    "refused": "not a valid name in this store",
    "full": "no space is left on the worker",
}


def get_provider(scheme: str) -> str:
    """The store behind a scheme: `s3` for `s3a`. Any other scheme is its own provider."""
    return SCHEME_ALIASES.get(scheme, scheme)


def load_error_types(scheme: str) -> tuple[type[Exception], ...]:
    """What a client of a scheme raises. ImportError where the store's library is not installed."""
    provider = get_provider(scheme)
    paths = [name.split(":") for name in ERROR_CLASSES.get(provider, ())]
    classes = [getattr(import_module(module), name) for module, name in paths]
    if provider == "hf":  # a lost connection is an error of the hub's HTTP library, which is a base of its first error
        classes += classes[0].__bases__
    return (OSError, *classes)


def get_client_options(scheme: str) -> dict[str, Any]:
    return S3_OPTIONS if get_provider(scheme) == "s3" else {}


def get_object_store_options(url: str) -> dict[str, str]:
    """What the clients of Delta and Lance must be told of the environment: they take only a part from it themselves."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if get_provider(url.partition("://")[0]) != "s3" or not endpoint:
        return {}
    return {"aws_endpoint": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}


def get_version(info: Mapping[str, Any], kind: str) -> str | None:
    """The version of an object in what a client says about it, in a listing or alone.

    >>> get_version({"ETag": '"0a1b"', "size": 3}, "etag"), get_version({"size": 3}, "mtime")
    ('"0a1b"', None)
    """
    value = next((info[key] for key in VERSION_KEYS[kind] if info.get(key)), None)
    return value.isoformat() if isinstance(value, datetime) else value and str(value)


def disable_client_retries(filesystem: Any, scheme: str) -> None:
    """Turn off the retries that no option reaches."""
    if get_provider(scheme) == "s3":
        filesystem.retries = 1


def translate_error(error: Exception, uri: str) -> FetchError:
    chain = f"{error} {error.__cause__ or ''}"
    if "PreconditionFailed" in chain or "(412)" in chain:
        return ObjectChangedError(redact_source(uri))
    kind = retry_policy.classify_error(error)
    message = f"{redact_source(uri)}: {ERROR_MESSAGES.get(kind) or type(error.__cause__ or error).__name__}"
    if kind in retry_policy.MEDIA_POLICIES:
        return TransientError(kind, message)
    return FetchError("uri" if kind == "refused" else kind, message)
