"""Fetches checkpoints from the ModelScope hub: `ms://owner/name`, with the library modelscope-hub (an extra).

The hub lists the hashes of files, so a checkpoint is identified without its weights. Its identity is REVISION@DIGEST:
workers fetch the same revision, and a JobError says so where it holds other files by then.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import JobError

SCHEME, DEFAULT_REVISION = "ms://", "master"
MODEL_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def locate_files(
    weights: str, revision: str | None, *, suffixes: tuple[str, ...], wanted: tuple[str, ...], cache_folder: Path
) -> Path:
    """The folder on this machine with the files that end in `suffixes`, each fetched once; `wanted` make the digest."""
    from filelock import FileLock

    branch, _, expected = (revision or DEFAULT_REVISION).partition("@")
    hashes = list_hashes(weights, branch, wanted)
    digest = compute_digest(hashes)
    if expected and digest != expected:
        raise JobError(
            f"model.weights: {weights} at {branch} has other files than when this run started (their digest is "
            f"{digest[:12]} and should be {expected[:12]}). Start the run again to use them, or name a tag in "
            "model.revision"
        )
    model_id = parse_model_id(weights)
    folder = cache_folder / f"ms-{model_id.replace('/', '-')[-40:]}-{digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        missing = [name for name in hashes if name.endswith(suffixes) and not (folder / name).exists()]
        if missing:
            with open_hub(weights, branch) as hub:
                hub.download_repo(model_id, "model", revision=branch, local_dir=folder, allow_patterns=missing)
    return folder


def compute_identity(weights: str, revision: str | None, *, wanted: tuple[str, ...]) -> str:
    branch = (revision or DEFAULT_REVISION).partition("@")[0]
    return f"{branch}@{compute_digest(list_hashes(weights, branch, wanted))}"


def compute_digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def list_hashes(weights: str, branch: str, wanted: tuple[str, ...]) -> dict[str, str]:
    """The hash of each of the checkpoint's files, by name."""
    model_id = parse_model_id(weights)
    with open_hub(weights, branch) as hub:
        files = hub.list_repo_files(model_id, "model", revision=branch)
    hashes = {file.path: file.sha256 for file in files if "/" not in file.path and file.path.endswith(wanted)}
    if not {"config.json", "adapter_config.json"} & hashes.keys():
        raise JobError(f"model.weights: there is no config.json in {weights}")
    return hashes


def parse_model_id(weights: str) -> str:
    model_id = weights.removeprefix(SCHEME).rstrip("/")
    if not MODEL_ID.fullmatch(model_id):
        raise JobError(f"model.weights: {weights} is not an id of ModelScope; write ms://OWNER/NAME")
    return model_id


def import_library() -> Any:
    try:
        import modelscope_hub
    except ImportError as error:
        raise JobError("model.weights: ms:// needs a library: pip install 'vlbatch[modelscope]'") from error
    return modelscope_hub


@contextmanager
def open_hub(weights: str, branch: str) -> Iterator[Any]:
    """The library's client. What it raises becomes a JobError that says what to do."""
    library = import_library()
    reasons: dict[type[Exception], str] = {  # subclasses first
        library.AuthenticationError: "ModelScope wants MODELSCOPE_API_TOKEN to know you",
        library.PermissionDeniedError: "ModelScope does not let you read it: check MODELSCOPE_API_TOKEN",
        library.NotExistError: "ModelScope has no such model or revision, or it is private",
        library.NetworkError: "ModelScope cannot be reached",
        library.HubError: "ModelScope refuses, or a file was not fetched whole",
        OSError: "ModelScope cannot be reached, or the disk cannot be written",
    }
    try:
        yield library.HubApi()
    except tuple(reasons) as error:
        reason = next(text for kind, text in reasons.items() if isinstance(error, kind))
        raise JobError(f"model.weights: {weights} at {branch}: {reason} ({type(error).__name__}: {error})") from error
