"""Finds the checkpoint that `model.weights` of a job names, brings it to this machine, and identifies its content.

A folder is used in place. A hub id goes through the hub's own cache, an id of ModelScope through its library. Any other
URL that fsspec knows is copied once per machine, into a folder whose name changes with the content; old copies stay,
because a run may still read them. `builtin:` weights are part of the package.

The driver computes the identity of the checkpoint, and workers give it as the revision. So a worker loads exactly the
files that the fingerprint stands for, or raises a JobError where they were replaced since.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError
from pipeline.model import modelscope_weights

if TYPE_CHECKING:
    from pipeline.job.model_section import ModelSection

SMALL_FILE_SUFFIXES = (".json", ".jinja", ".txt")
WEIGHT_FILE_SUFFIXES = (".safetensors",)
CHECKPOINT_SUFFIXES = SMALL_FILE_SUFFIXES + WEIGHT_FILE_SUFFIXES
SAMPLE_BYTES = 2**20  # read from each end of a weights file; enough to tell two files apart
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
BUILTIN_NAMES = ("tiny", "tiny-invoice", "tiny-qwen3", "tiny-qwen3_5")  # folders of pipeline/builtin/weights


def locate_checkpoint(weights: str, revision: str | None = None) -> Path:
    """The folder on this machine that holds the whole checkpoint."""
    return _locate_files(weights, revision, CHECKPOINT_SUFFIXES)


def locate_small_files(weights: str, revision: str | None = None) -> Path:
    """The folder on this machine that holds at least the configuration and the tokenizer."""
    return _locate_files(weights, revision, SMALL_FILE_SUFFIXES)


def compute_identity(weights: str, revision: str | None = None) -> str:
    """A digest that changes when the checkpoint does: the hub's commit, or a hash of names, sizes and samples."""
    if weights.startswith(modelscope_weights.SCHEME):
        return modelscope_weights.compute_identity(weights, revision, wanted=CHECKPOINT_SUFFIXES)
    return _identify_folder(weights, locate_small_files(weights, revision))


def locate_adapter(model: ModelSection) -> Path | None:
    """The folder on this machine that holds the job's adapter; None where it names none."""
    if model.adapter is None:
        return None
    with _about_adapter():
        return locate_checkpoint(model.adapter, model.adapter_revision)


def locate_adapter_config(model: ModelSection) -> Path | None:
    """The folder that holds at least the adapter's configuration."""
    if model.adapter is None:
        return None
    with _about_adapter():
        return locate_small_files(model.adapter, model.adapter_revision)


def compute_adapter_identity(model: ModelSection) -> str | None:
    if model.adapter is None:
        return None
    with _about_adapter():
        return compute_identity(model.adapter, model.adapter_revision)


@contextmanager
def _about_adapter() -> Iterator[None]:
    """Adapters are found as checkpoints are, and only the key of the job differs in what is said."""
    try:
        yield
    except JobError as error:
        raise JobError(str(error).replace("model.weights", "model.adapter")) from error


def _locate_files(weights: str, revision: str | None, suffixes: tuple[str, ...]) -> Path:
    if weights.startswith("builtin:"):
        if (name := weights.removeprefix("builtin:")) not in BUILTIN_NAMES:
            available = ", ".join(f"builtin:{builtin_name}" for builtin_name in BUILTIN_NAMES)
            raise JobError(f"model.weights: there is no {weights}; there is {available}")
        folder = Path(__file__).parents[1] / "builtin" / "weights" / name
    elif weights.startswith(modelscope_weights.SCHEME):
        return modelscope_weights.locate_files(
            weights, revision, suffixes=suffixes, wanted=CHECKPOINT_SUFFIXES, cache_folder=_get_cache_folder()
        )
    elif _is_remote(weights):
        folder = _copy_remote_folder(weights, suffixes)
    else:
        folder = Path(weights.removeprefix("file://")).expanduser()
        if not folder.is_dir() and not HUB_ID.fullmatch(weights):
            raise JobError(f"model.weights: {weights} is not a folder, and not an id of the hub (OWNER/NAME) either")
        if not folder.is_dir():
            return _download_from_hub(weights, revision, suffixes)
    if revision is not None:
        _require_identity(weights, folder, revision)
    return folder


def _is_remote(weights: str) -> bool:
    return "://" in weights and not weights.startswith("file://")


@functools.lru_cache(maxsize=64)  # a process opens the same checkpoint several times
def _require_identity(weights: str, folder: Path, expected: str) -> None:
    if (found := _identify_folder(weights, folder)) != expected:
        raise JobError(
            f"model.weights: the files of {weights} on {socket.gethostname()} are not those of this run (their digest "
            f"is {found[:12]} and should be {expected[:12]}): they were replaced since the run started, or differ "
            "between nodes. Give every node the same files; start the run again to use new ones"
        )


def _identify_folder(weights: str, folder: Path) -> str:
    if folder.parent.name == "snapshots":  # the hub's cache names a folder by its commit
        return folder.name
    if not _is_remote(weights):
        return _compute_digest(weights, *_list_files(str(folder)))
    with _lock_folder(folder):
        digest_path = folder / ".digest"  # of the version that the folder is named after
        if not digest_path.exists():
            digest = _compute_digest(weights, *_list_files(weights))
            _require_unchanged(weights, folder)
            digest_path.write_text(digest)
        return digest_path.read_text()


def _compute_digest(weights: str, fs: Any, files: Mapping[str, Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for name, file_info in files.items():
        size = file_info["size"]
        digest.update(f"{name} {size}\n".encode())
        sampled_ranges = [(0, SAMPLE_BYTES), (max(0, size - SAMPLE_BYTES), size)]
        for start, end in [(0, size)] if name.endswith(SMALL_FILE_SUFFIXES) else sampled_ranges:
            with _convert_to_job_errors(weights):
                digest.update(fs.cat_file(file_info["name"], start=start, end=min(end, size)))
    return digest.hexdigest()


def _download_from_hub(weights: str, revision: str | None, suffixes: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    reasons: dict[type[Exception], str] = {  # subclasses first
        errors.GatedRepoError: "the hub wants you to accept its terms there, and needs HF_TOKEN to know you",
        errors.RevisionNotFoundError: "the hub has no such revision of it",
        errors.RepositoryNotFoundError: "the hub has no such model, or it is private: check the name and HF_TOKEN",
        errors.HFValidationError: "this is not a valid name of a model on the hub",
        errors.LocalEntryNotFoundError: "the hub cannot be reached, and it was not fetched to this machine before",
        errors.HfHubHTTPError: "the hub refuses: check HF_TOKEN, or try again",
        OSError: "the hub cannot be reached, or the disk cannot be written",
    }
    try:
        return Path(snapshot_download(weights, revision=revision, allow_patterns=[f"*{end}" for end in suffixes]))
    except tuple(reasons) as error:
        reason = next(text for error_class, text in reasons.items() if isinstance(error, error_class))
        at_revision = f" at {revision}" if revision else ""
        raise JobError(
            f"model.weights: {weights}{at_revision}: {reason} ({type(error).__name__}). A folder with the checkpoint "
            "works, too. To try the rest without it: --set model.weights=builtin:tiny --set workers.generate.gpus=0"
        ) from error


def _copy_remote_folder(url: str, suffixes: tuple[str, ...]) -> Path:
    """Fetches each file once per machine."""
    fs, files = _list_files(url)
    folder = _get_copy_folder(url, files)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock_folder(folder):
        missing = [name for name in files if name.endswith(suffixes) and not (folder / name).exists()]
        for name in missing:
            with _convert_to_job_errors(url), _show_bytes(name) as callback:
                fs.get_file(files[name]["name"], str(folder / f"{name}.part"), callback=callback)
        if missing:
            _require_unchanged(url, folder)
        for name in missing:
            os.replace(folder / f"{name}.part", folder / name)
    return folder


def _show_bytes(name: str) -> Any:
    """A bar on a terminal with the time left, like those of the hubs' libraries. None for small files."""
    from fsspec.callbacks import NoOpCallback, TqdmCallback

    if not name.endswith(WEIGHT_FILE_SUFFIXES):
        return NoOpCallback()
    return TqdmCallback({"desc": name, "unit": "B", "unit_scale": True, "leave": False, "disable": None})


def _lock_folder(folder: Path) -> AbstractContextManager[Any]:
    """Several processes may ask for the same copy at the same time."""
    from filelock import FileLock

    return FileLock(folder / ".lock")


def _get_copy_folder(url: str, files: Mapping[str, Mapping[str, Any]]) -> Path:
    """The folder of this machine's copy, whose name changes with the versions of the files."""
    url = url.rstrip("/")
    versions = [(name, info["size"], str(info.get("ETag") or info.get("mtime", ""))) for name, info in files.items()]
    key = hashlib.sha256(json.dumps([url, versions]).encode()).hexdigest()[:16]
    return _get_cache_folder() / f"{re.sub(r'[^-.0-9A-Za-z]+', '-', url)[-40:]}-{key}"


def _get_cache_folder() -> Path:
    return Path(os.environ.get("VLBATCH_CACHE") or Path.home() / ".cache" / "vlbatch") / "weights"


def _require_unchanged(url: str, folder: Path) -> None:
    """Raise where files were replaced while they were read."""
    if _get_copy_folder(url, _list_files(url)[1]) != folder:
        raise JobError(f"model.weights: {url} was changed while it was read; run the same command again")


def _list_files(url: str) -> tuple[Any, dict[str, Mapping[str, Any]]]:
    """The file system, and what it says about each of the checkpoint's files, sorted by name."""
    import fsspec

    with _convert_to_job_errors(url):
        fs, path = fsspec.core.url_to_fs(url)
        fs.invalidate_cache()
        files = {Path(info["name"]).name: info for info in fs.ls(path, detail=True) if info["type"] == "file"}
    if not {"config.json", "adapter_config.json"} & files.keys():
        raise JobError(f"model.weights: there is no config.json in {url}")
    return fs, {name: files[name] for name in sorted(files) if name.endswith(CHECKPOINT_SUFFIXES)}


@contextmanager
def _convert_to_job_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        raise JobError(f"model.weights: {url} cannot be read ({type(error).__name__}: {error})") from error
