"""Converts a job to the arguments of vLLM's engine, or says by the keys of the job what is wrong with them.

Every key under `engine` that is not ours is passed on. The names that vLLM knows are read from its source: importing it
takes ten seconds, and it need not be installed where jobs are checked.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import JobError
from pipeline.job.embedding_section import EmbeddingSection
from pipeline.job.spec import Job
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engines.torch.adapter import ADVICE, Adapter, read_config
from pipeline.model.families.base import Family
from pipeline.model.families.model_architecture import ModelArchitecture
from pipeline.registry import format_suggestion

JOB_KEYS = {  # arguments of vLLM that other keys of a job set
    "model": "model.weights",
    "tokenizer": "model.weights",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "tensor_parallel_size": "model.tensor_parallel",
    "max_model_len": "model.context.max_length",
}

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be started with


def find_problems(job: Job) -> list[str]:
    given, known = job.engine.model_extra or {}, list_engine_arguments()
    vllm_names = {  # keys of `model` that vLLM takes as arguments of its own
        "attention": (job.model.attention != "auto", "attention_backend"),
        "quantize": (job.model.quantize, "quantization, with a checkpoint that is quantised"),
        "context.rope": (job.model.context.rope, "hf_overrides"),
        "overrides": (job.model.overrides, "hf_overrides"),
    }
    problems = [f"model.{key}: with vLLM this is engine.{name}" for key, (is_set, name) in vllm_names.items() if is_set]
    problems += find_adapter_problems(job)
    is_unknown = not family_loader.knows_model(job)
    if is_unknown and not job.model.weights:
        problems.append("model.weights: vLLM runs the model here, so name its checkpoint")
    if is_unknown and not job.answer.is_written:
        problems.append("model.family: with engine vllm an unknown model only writes; serve it, and use engine http")
    if is_unknown and job.answer.thinking and "reasoning_parser" not in given:
        problems.append("engine.reasoning_parser: say how this model marks its thinking, by vLLM's name for it")
    problems += [f"engine.{name}: say it as {JOB_KEYS[name]}" for name in given if name in JOB_KEYS]
    unknown = sorted(given.keys() - JOB_KEYS.keys() - known.keys()) if known else []
    return problems + [
        f"engine.{name}: vLLM's engine has no such argument{format_suggestion(name, known)}" for name in unknown
    ]


def find_adapter_problems(job: Job) -> list[str]:
    """vLLM applies an adapter beside the weights, at every token. It refuses one that it cannot apply at the first
    request only, so that is found here as far as the configuration tells."""
    try:
        folder = checkpoint_location.locate_adapter_config(job.model)
        if folder is not None and find_largest_rank(config := read_config(folder)) > MAX_LORA_RANKS[-1]:
            return [f"model.adapter: vLLM applies ranks up to {MAX_LORA_RANKS[-1]}, not {find_largest_rank(config)}"]
    except JobError as error:
        return [str(error)]
    return []


def find_largest_rank(config: Mapping[str, Any]) -> int:
    """
    >>> find_largest_rank({"r": 8, "rank_pattern": {"q_proj": 24}})
    24
    """
    return max(map(int, (config.get("r", 8), *(config.get("rank_pattern") or {}).values())))


def build_adapter_arguments(adapter: Path) -> dict[str, Any]:
    rank = find_largest_rank(read_config(adapter))
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(most for most in MAX_LORA_RANKS if most >= rank)}


def build_pooling_arguments(embedding: EmbeddingSection) -> dict[str, Any]:
    from vllm.config import PoolerConfig

    return {
        "runner": "pooling",
        "convert": "embed",
        "pooler_config": PoolerConfig(pooling_type="MEAN" if embedding.pooling == "mean" else "LAST"),
    }


def refuse_vision_adapter(adapter: Path, architecture: ModelArchitecture) -> None:
    changed = [name for name in Adapter(adapter, architecture).modules if architecture.is_vision_weight(name)]
    if changed:
        raise JobError(
            f"model.adapter: {adapter} changes {changed[0]}, and vLLM applies adapters to the language model; {ADVICE}"
        )


def build_arguments(job: Job, folder: Path, family: Family, adapter: Path | None = None) -> dict[str, Any]:
    from vllm.config import StructuredOutputsConfig

    size, given = job.model.tensor_parallel, job.engine.model_dump(exclude={"kind"}, exclude_none=True)
    guidance = {"backend": "guidance", "disable_any_whitespace": True} | given.pop("structured_outputs_config", {})
    return {
        "model": str(folder),
        "dtype": choose_dtype(folder, job),
        "tensor_parallel_size": size,
        "distributed_executor_backend": "mp" if size > 1 else None,  # not Ray, which runs the replica itself
        "max_model_len": job.model.context.max_length or -1,  # -1: as much as fits
        "reasoning_parser": family.reasoning_parser if family.thinking else "",  # the schema holds after </think>
        "structured_outputs_config": StructuredOutputsConfig(**guidance),  # vLLM cannot add the parser to a dict
        "disable_log_stats": True,
        **(build_pooling_arguments(job.answer.embedding) if job.answer.embedding else {}),
        **(build_adapter_arguments(adapter) if adapter else {}),
        **given,
    }


def choose_dtype(folder: Path, job: Job) -> str:
    """The choice of our own engine. vLLM's `auto` would run a float32 checkpoint in half precision."""
    from vllm.platforms import current_platform

    if job.model.dtype != "auto":
        return job.model.dtype
    config = family_loader.load_config(folder)
    sections = (config, config.get("text_config", config))
    dtypes = (section.get(key) for section in sections for key in ("dtype", "torch_dtype"))
    dtype = str(next(filter(None, dtypes), "auto"))
    return "float32" if dtype == "float16" and current_platform.is_cpu() else dtype


@cache
def list_engine_arguments() -> dict[str, Any]:
    """The names of the arguments as keys; empty where vLLM is not installed."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return {}
    source = Path(spec.submodule_search_locations[0], "engine", "arg_utils.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"]
    fields = [node.target for engine_args in classes for node in engine_args.body if isinstance(node, ast.AnnAssign)]
    return {field.id: None for field in fields if isinstance(field, ast.Name)}
