"""`model.weights` of a job -> a folder on this machine, and what its small files say.

A folder is used as it is, a hub id goes through the hub's own cache, any other URL that fsspec knows
is copied once per machine under a name that changes with its content, and `builtin:` weights lie
in the package. Old copies are not deleted: a run may still be reading them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError
from pipeline.model.families.base import CheckpointFiles, Family
from pipeline.registry import FAMILIES, load_registered

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pipeline.job.spec import ModelSection

SMALL_FILE_SUFFIXES = (".json", ".jinja", ".txt")
WEIGHT_FILE_SUFFIXES = (".safetensors",)
SAMPLE_BYTES = 2**20  # of each end of a weights file: enough to notice another one
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
BUILTIN_NAMES = ("tiny", "tiny-invoice", "tiny-qwen3")  # folders of pipeline/builtin/weights
log = logging.getLogger(__name__)


def locate_checkpoint(weights: str, revision: str | None = None) -> Path:
    """The whole checkpoint, on this machine."""
    return _locate_files(weights, revision, SMALL_FILE_SUFFIXES + WEIGHT_FILE_SUFFIXES)


def locate_small_files(weights: str, revision: str | None = None) -> Path:
    """Its configuration and tokenizer only: what a driver needs."""
    return _locate_files(weights, revision, SMALL_FILE_SUFFIXES)


def _locate_files(weights: str, revision: str | None, suffixes: tuple[str, ...]) -> Path:
    if weights.startswith("builtin:"):
        return _locate_builtin(weights.removeprefix("builtin:"))
    if "://" in weights and not weights.startswith("file://"):
        return _copy_remote_folder(weights.rstrip("/"), suffixes)
    folder = Path(weights.removeprefix("file://")).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(weights):
        raise JobError(f"model.weights: {weights} is not a folder, and not an id of the hub (OWNER/NAME) either")
    return _download_from_hub(weights, revision, suffixes)


def _download_from_hub(weights: str, revision: str | None, suffixes: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    why: dict[type[Exception], str] = {  # the more special first
        errors.GatedRepoError: "the hub wants you to accept its terms there, and HF_TOKEN to say who you are",
        errors.RevisionNotFoundError: "the hub has no such revision of it",
        errors.RepositoryNotFoundError: "the hub has no such model, or it is private: check the name and HF_TOKEN",
        errors.HFValidationError: "no model of the hub could be called so",
        errors.LocalEntryNotFoundError: "the hub cannot be reached, and it was not fetched to this machine before",
        errors.HfHubHTTPError: "the hub refuses: check HF_TOKEN, or try again",
        OSError: "the hub cannot be reached, or the disk not be written",
    }
    try:
        return Path(snapshot_download(weights, revision=revision, allow_patterns=[f"*{end}" for end in suffixes]))
    except tuple(why) as error:
        reason = next(said for kind, said in why.items() if isinstance(error, kind))
        at = f" at {revision}" if revision else ""
        raise JobError(
            f"model.weights: {weights}{at}: {reason} ({type(error).__name__}). A folder with the checkpoint will do, "
            "too. To try all else without it: --set model.weights=builtin:tiny --set workers.generate.gpus=0"
        ) from error


def _copy_remote_folder(url: str, suffixes: tuple[str, ...]) -> Path:
    """A remote folder's files, each fetched once per machine; several processes may ask at once."""
    from filelock import FileLock

    fs, files = _list_files(url)
    content = [(name, facts["size"], str(facts.get("ETag") or facts.get("mtime", ""))) for name, facts in files.items()]
    key = hashlib.sha256(json.dumps([url, content]).encode()).hexdigest()[:16]
    folder = _get_cache_folder() / f"{re.sub(r'[^-.0-9A-Za-z]+', '-', url)[-40:]}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for name, facts in files.items():
            target = folder / name
            if name.endswith(suffixes) and not target.exists():
                with _convert_to_job_errors(url):
                    fs.get_file(facts["name"], str(folder / f"{name}.part"))
                os.replace(folder / f"{name}.part", target)
    return folder


def _locate_builtin(name: str) -> Path:
    if name not in BUILTIN_NAMES:
        known = ", ".join(f"builtin:{known}" for known in BUILTIN_NAMES)
        raise JobError(f"model.weights: there is no builtin:{name}; there is {known}")
    return Path(__file__).parents[1] / "builtin" / "weights" / name


def _get_cache_folder() -> Path:
    return Path(os.environ.get("VLBATCH_CACHE") or Path.home() / ".cache" / "vlbatch") / "weights"


def _list_files(url: str) -> tuple[Any, dict[str, Mapping[str, Any]]]:
    """The file system and the checkpoint's files by name, in order."""
    import fsspec

    with _convert_to_job_errors(url):
        fs, path = fsspec.core.url_to_fs(url)
        fs.invalidate_cache()
        found = {Path(facts["name"]).name: facts for facts in fs.ls(path, detail=True) if facts["type"] == "file"}
    if "config.json" not in found:
        raise JobError(f"model.weights: there is no config.json in {url}")
    return fs, {
        name: found[name] for name in sorted(found) if name.endswith(SMALL_FILE_SUFFIXES + WEIGHT_FILE_SUFFIXES)
    }


@contextmanager
def _convert_to_job_errors(url: str) -> Iterator[None]:
    """Errors of file systems, as one about the job."""
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        raise JobError(f"model.weights: {url} cannot be read ({type(error).__name__}: {error})") from error


def compute_identity(weights: str, revision: str | None = None) -> str:
    """A name that changes when the checkpoint does."""
    folder = locate_small_files(weights, revision)
    if folder.parent.name == "snapshots":  # the hub's cache calls a folder by its commit
        return folder.name
    fs, files = _list_files(weights if "://" in weights else str(folder))
    digest = hashlib.sha256()
    for name, facts in files.items():
        size = facts["size"]
        digest.update(f"{name} {size}\n".encode())
        ends = (
            [(0, size)]
            if name.endswith(SMALL_FILE_SUFFIXES)
            else [(0, SAMPLE_BYTES), (max(0, size - SAMPLE_BYTES), size)]
        )
        for start, end in ends:
            with _convert_to_job_errors(weights):
                digest.update(fs.cat_file(facts["name"], start=start, end=min(end, size)))
    return digest.hexdigest()


def load_config(folder: Path, model: ModelSection | None = None) -> dict[str, Any]:
    """config.json, with what the job changes in it."""
    said = _read_json(folder, "config.json")
    if not said:
        raise JobError(f"model.weights: there is no config.json in {folder}")
    if model is None:
        return said
    said = _merge_overrides(said, model.overrides)
    text = said.get("text_config", said)
    if model.context.rope is not None:
        _apply_yarn(text, said["model_type"], model.context.rope.factor)
    if model.context.max_length is not None:
        text["max_position_embeddings"] = model.context.max_length
    return said


def _merge_overrides(config_section: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested: a change of one key of text_config leaves the others."""
    return config_section | {
        key: _merge_overrides(config_section[key], value)
        if isinstance(value, Mapping) and isinstance(config_section.get(key), dict)
        else value
        for key, value in overrides.items()
    }


def _apply_yarn(text_config: dict[str, Any], model_type: str, factor: float) -> None:
    """YaRN, as the models' own pages spell it."""
    key = "rope_parameters" if "rope_parameters" in text_config else "rope_scaling"
    rope = text_config.get(key) or {}
    trained = (
        rope.get("original_max_position_embeddings")
        or load_registered(FAMILIES, model_type, "model family").trained_context
    )
    trained = trained or text_config["max_position_embeddings"]
    yarn = {"type": "yarn", "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}
    text_config[key] = {**rope, **yarn}
    text_config["max_position_embeddings"] = max(int(trained * factor), text_config["max_position_embeddings"])


def describe_yarn_risk(model: ModelSection, meanings: Collection[str]) -> str | None:
    """What to tell someone whose answers say where or when (`box`, `point`, `seconds`) of a stretched model."""
    if model.context.rope is None or not {"box", "point", "seconds"} & set(meanings):
        return None
    return (
        "model.context.rope: YaRN moves every position, and the models' authors advise against it where answers are "
        "places or times; with max_length alone they stay exact"
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of one's own: a family changes how it treats special tokens."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise JobError(f"model.weights: there is no tokenizer.json in {folder}")
    made: Tokenizer = Tokenizer.from_file(str(path))
    return made


def load_family(folder: Path, *, model: ModelSection | None = None, add_vision_id: bool = False) -> Family:
    """What the checkpoint was trained on, by its model_type."""
    said = load_config(folder, model)
    processor = _read_json(folder, "processor_config.json")  # where newer versions of transformers save the other two
    files = CheckpointFiles(
        config=said,
        image_processor=_read_json(folder, "preprocessor_config.json") or processor.get("image_processor", {}),
        video_processor=_read_json(folder, "video_preprocessor_config.json") or processor.get("video_processor", {}),
        chat_template=_read_chat_template(folder),
    )
    kind = load_registered(FAMILIES, said.get("model_type", "nothing"), "model.weights: model_type")
    made: Family = kind(files, load_tokenizer(folder), add_vision_id=add_vision_id)
    return made


def _read_chat_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    files = (_read_json(folder, name) for name in ("chat_template.json", "tokenizer_config.json"))
    said = next((file["chat_template"] for file in files if file.get("chat_template")), None)
    if isinstance(said, list):  # several, by name
        said = next((entry["template"] for entry in said if entry["name"] == "default"), None)
    return said


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise JobError(f"model.weights: {path} is not JSON: {error}") from error
    return said
