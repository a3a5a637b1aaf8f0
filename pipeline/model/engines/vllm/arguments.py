"""A job -> the arguments of vLLM's engine, or what is wrong with them, by the keys of the job.

What a job says elsewhere is not said again under `engine`; any other argument is passed on. Which there are is read
from vLLM's source: importing it takes ten seconds, and where jobs are checked it need not be installed at all.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.job.spec import Job
from pipeline.model import family_loader
from pipeline.registry import format_suggestion

JOB_KEYS = {  # arguments of vLLM that a job says elsewhere
    "model": "model.weights",
    "tokenizer": "model.weights",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "tensor_parallel_size": "model.tensor_parallel",
    "max_model_len": "model.context.max_length",
}


def find_problems(job: Job) -> list[str]:
    """What vLLM does not know or does its own way."""
    said, known = job.engine.model_extra or {}, list_engine_arguments()
    elsewhere = {
        "attention": (job.model.attention != "auto", "attention_backend"),
        "quantize": (job.model.quantize, "quantization, with a checkpoint that is quantised"),
        "context.rope": (job.model.context.rope, "hf_overrides"),
        "overrides": (job.model.overrides, "hf_overrides"),
    }
    found = [f"model.{key}: with vLLM this is engine.{name}" for key, (given, name) in elsewhere.items() if given]
    found += [f"engine.{name}: say it as {JOB_KEYS[name]}" for name in said if name in JOB_KEYS]
    unknown = sorted(said.keys() - JOB_KEYS.keys() - known.keys()) if known else []
    return found + [
        f"engine.{name}: vLLM's engine has no such argument{format_suggestion(name, known)}" for name in unknown
    ]


def build_arguments(job: Job, folder: Path, *, thinking: bool) -> dict[str, Any]:
    size = job.model.tensor_parallel
    return {
        "model": str(folder),
        "dtype": choose_dtype(folder, job),
        "tensor_parallel_size": size,
        "distributed_executor_backend": "mp" if size > 1 else None,  # inside the replica, also where Ray is about
        "max_model_len": job.model.context.max_length or -1,  # or what fits
        "reasoning_parser": "qwen3" if thinking else "",  # the schema holds after </think>
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        "mm_processor_cache_gb": 0,  # no picture comes twice
        "disable_log_stats": True,
        **{name: value for name, value in job.engine.model_dump(exclude={"kind"}).items() if value is not None},
    }


def choose_dtype(folder: Path, job: Job) -> str:
    """As our engine chooses; vLLM's own `auto` would run a checkpoint of float32 in half of that."""
    from vllm.platforms import current_platform

    config = family_loader.load_config(folder)
    text = config.get("text_config", config)
    said = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype") or "auto"
    if job.model.dtype != "auto":
        return job.model.dtype
    return "float32" if said == "float16" and current_platform.is_cpu() else str(said)


@cache
def list_engine_arguments() -> dict[str, Any]:
    """The arguments that the installed vLLM takes; none where it is not installed."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return {}
    source = Path(spec.submodule_search_locations[0], "engine", "arg_utils.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"]
    fields = [node.target for each in classes for node in each.body if isinstance(node, ast.AnnAssign)]
    return {field.id: None for field in fields if isinstance(field, ast.Name)}
