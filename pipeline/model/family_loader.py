"""Loads what a checkpoint's small files say: its config with the job's changes, its tokenizer, its family.

Nothing here reads a weight or imports torch, so drivers and planners can use it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError
from pipeline.model import checkpoint_location
from pipeline.model.families.base import CheckpointFiles, Family
from pipeline.model.families.model_architecture import ModelArchitecture
from pipeline.registry import FAMILIES, load_registered

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pipeline.job.model_section import ModelSection
    from pipeline.job.spec import Job


END_OF_TEXT = "<|endoftext|>"


def load_family_class(model_type: str) -> type[Family]:
    family_class: type[Family] = load_registered(FAMILIES, model_type, "model.weights: model_type")
    return family_class


def load_architecture(model_type: str) -> ModelArchitecture:
    family_class = load_family_class(model_type)
    if not family_class.knows_model:
        raise JobError(f"model.family: {model_type} is for engines that run models of their own: vllm and http")
    return family_class.architecture


def knows_model(job: Job) -> bool:
    """Whether prompts, sizes and tokens are prepared here, and not by the program that runs the model."""
    return job.model.family is None or load_family_class(job.model.family).knows_model


def open_job_family(job: Job) -> Family:
    """The family of the checkpoint that a job names, if it names one."""
    model = job.model
    folder = checkpoint_location.locate_small_files(model.weights, model.revision) if model.weights else Path()
    return load_job_family(folder, job)


def load_job_family(folder: Path, job: Job) -> Family:
    """The family of a checkpoint, with the job's changes. Nothing is read for a family that does not know its model."""
    thinking = None if job.answer.thinking is None else job.answer.thinking is not False
    options: dict[str, Any] = {"add_vision_id": job.media.add_vision_id, "thinking": thinking}
    if not job.answer.is_written and (job.model.family is None or knows_model(job)):
        options |= {"thinking": False, "closes_thinking": True}
    if job.model.family and not knows_model(job):
        return load_family_class(job.model.family)(CheckpointFiles({}), build_byte_tokenizer(), **options)
    return load_family(folder, model=job.model, **options)


def load_family(folder: Path, *, model: ModelSection | None = None, **options: Any) -> Family:
    """The family that config.json names by `model_type`, set up for this checkpoint. `options` are its arguments."""
    config = load_config(folder, model)
    processor = _read_json(folder, "processor_config.json")  # newer transformers write both processors into this file
    files = CheckpointFiles(
        config=config,
        image_processor=_read_json(folder, "preprocessor_config.json") or processor.get("image_processor", {}),
        video_processor=_read_json(folder, "video_preprocessor_config.json") or processor.get("video_processor", {}),
        chat_template=_read_chat_template(folder),
    )
    family_class = load_family_class(config.get("model_type", "nothing"))
    return family_class(files, load_tokenizer(folder), **options)


def load_tokenizer(folder: Path) -> Tokenizer:
    """A new tokenizer for each caller: a family changes how its own treats special tokens."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise JobError(f"model.weights: there is no tokenizer.json in {folder}")
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    return tokenizer


def build_byte_tokenizer() -> Tokenizer:
    """A token for each byte, where the model's own tokens are not known: enough to complete an answer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([END_OF_TEXT, *pieces])}
    tokenizer: Tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_config(folder: Path, model: ModelSection | None = None) -> dict[str, Any]:
    """config.json with the job's changes: `model.overrides`, `model.context`."""
    config = _read_json(folder, "config.json")
    if not config:
        raise JobError(f"model.weights: there is no config.json in {folder}")
    if model is None:
        return config
    config = _merge_overrides(config, model.overrides)
    if model.family is not None:
        config["model_type"] = model.family
    text_config = config.get("text_config", config)
    if model.context.rope is not None:
        _apply_yarn(text_config, config["model_type"], model.context.rope.factor)
    if model.context.max_length is not None:
        text_config["max_position_embeddings"] = model.context.max_length
    return config


def _merge_overrides(config_section: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested sections key by key."""
    return config_section | {
        key: _merge_overrides(config_section[key], value)
        if isinstance(value, Mapping) and isinstance(config_section.get(key), dict)
        else value
        for key, value in overrides.items()
    }


def _apply_yarn(text_config: dict[str, Any], model_type: str, factor: float) -> None:
    """Writes YaRN scaling into the config with the keys that the models' own pages give."""
    key = "rope_parameters" if "rope_parameters" in text_config else "rope_scaling"
    rope = text_config.get(key) or {}
    trained_length = (
        rope.get("original_max_position_embeddings")
        or load_family_class(model_type).trained_context
        or text_config["max_position_embeddings"]
    )
    yarn = {"type": "yarn", "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained_length}
    text_config[key] = {**rope, **yarn}
    text_config["max_position_embeddings"] = max(int(trained_length * factor), text_config["max_position_embeddings"])


def describe_yarn_risk(model: ModelSection, meanings: Collection[str]) -> str | None:
    """A warning where the context is stretched and answers hold a `box`, `point` or `seconds`."""
    if model.context.rope is None or not {"box", "point", "seconds"} & set(meanings):
        return None
    return (
        "model.context.rope: YaRN moves every position, and the models' authors advise against it where answers are "
        "places or times; with max_length alone they stay exact"
    )


def _read_chat_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    files = (_read_json(folder, name) for name in ("chat_template.json", "tokenizer_config.json"))
    template = next((file["chat_template"] for file in files if file.get("chat_template")), None)
    if isinstance(template, list):  # several templates, by name
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """The file's content; an empty dict where there is no such file."""
    path = folder / name
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise JobError(f"model.weights: {path} is not JSON: {error}") from error
    return content
