"""vLLM's engine inside the replica: what a job may say about it. `vllm_engine.py` runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import ClassVar, Literal

from pydantic import ConfigDict

from pipeline.errors import JobError
from pipeline.job.key_types import Fraction, PositiveInt, define_key
from pipeline.job.spec import EngineSettings, Job
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engines.base import DEFAULT_SLOTS, Ability, Engine, EngineType
from pipeline.model.engines.vllm.arguments import build_arguments, find_problems, refuse_vision_adapter

QUIET_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}  # unless the environment says otherwise


class VllmSettings(EngineSettings):
    """Any other argument of vLLM's engine is passed on; one that vLLM does not know is refused."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: Literal["vllm"] = define_key(
        "vLLM's engine inside the replica (pip install vlbatch[vllm])", affects_answers=False
    )
    max_num_seqs: PositiveInt | None = define_key("rows decoded at once; default: vLLM's", None, affects_answers=False)
    max_num_batched_tokens: PositiveInt | None = define_key(
        "tokens computed in one step; default: vLLM's", None, affects_answers=False
    )
    gpu_memory_utilization: Fraction | None = define_key(
        "share of the GPU's memory; default: vLLM's", None, affects_answers=False
    )
    enforce_eager: bool = define_key("no CUDA graphs: starts sooner, runs slower", False, affects_answers=False)


class VllmEngineType(EngineType):
    Settings = VllmSettings
    abilities = frozenset({"guidance", "confidence", "choices", "embeddings"})
    missing_reasons: ClassVar[Mapping[Ability, str]] = {
        "vision_embeddings": "vLLM makes no vectors of a vision tower alone",
    }

    def open(self, job: Job) -> Engine:
        if find_spec("vllm") is None:
            raise JobError("engine.kind: vllm is not installed where the job runs: pip install 'vlbatch[vllm]'")
        for problem in self.find_problems(job):
            raise JobError(problem)
        os.environ.update({name: value for name, value in QUIET_ENVIRONMENT.items() if name not in os.environ})
        from pipeline.model.engines.vllm.vllm_engine import VllmEngine

        folder = checkpoint_location.locate_checkpoint(job.model.weights, job.model.revision)
        family = family_loader.load_job_family(folder, job)
        adapter = checkpoint_location.locate_adapter(job.model)
        if adapter is not None:
            config = family_loader.load_config(folder)
            refuse_vision_adapter(adapter, family_loader.load_architecture(config["model_type"]))
        return VllmEngine(family, adapter, **build_arguments(job, folder, family, adapter))

    def find_problems(self, job: Job) -> list[str]:
        return find_problems(job)

    def count_slots(self, job: Job) -> int:
        assert isinstance(job.engine, VllmSettings)
        return job.engine.max_num_seqs or DEFAULT_SLOTS
