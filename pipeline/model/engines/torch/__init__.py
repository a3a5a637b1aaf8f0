"""Our own engine on torch and transformers: its checks and its start. `engine.py` runs it."""

from __future__ import annotations

import os
from typing import Any

from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engines.base import DEFAULT_SLOTS, Engine, EngineType
from pipeline.model.engines.torch.adapter import read_config
from pipeline.model.engines.torch.torch_settings import TorchSettings


class TorchEngineType(EngineType):
    Settings = TorchSettings
    abilities = frozenset({"guidance", "confidence", "choices", "embeddings", "vision_embeddings"})

    def open(self, job: Job) -> Engine:
        import torch

        from pipeline.model.engines.torch.engine import TorchEngine
        from pipeline.model.engines.torch.vision_engine import VisionEngine

        assert isinstance(job.engine, TorchSettings)
        pool, size = job.workers.generate, job.model.tensor_parallel
        if pool.gpus and (gpu_count := torch.cuda.device_count()) < size:
            raise JobError(
                f"workers.generate.gpus: torch sees {gpu_count} GPUs here and a replica takes {size}; "
                "--set workers.generate.gpus=0 runs on CPU"
            )
        if not pool.gpus:  # Ray sets OMP_NUM_THREADS, not always to the CPUs of the pool
            torch.set_num_threads(max(1, min(int(pool.cpus), os.cpu_count() or 1) // size))
        folder = checkpoint_location.locate_checkpoint(job.model.weights, job.model.revision)
        family = family_loader.load_job_family(folder, job)
        loading: dict[str, Any] = {
            "device": "cuda" if pool.gpus else "cpu",
            "config": family_loader.load_config(folder, job.model),
            "dtype": job.model.dtype,
            "adapter": checkpoint_location.locate_adapter(job.model),
        }
        if job.answer.embedding and job.answer.embedding.source == "vision":
            return VisionEngine(folder, family, patches=job.engine.patches, hang_s=job.engine.hang_s, **loading)
        return TorchEngine(
            folder,
            family,
            **loading,
            attention=job.model.attention,
            quantize=job.model.quantize,
            tensor_parallel=size,
            output="states" if job.answer.embedding else "logits",
            **job.engine.model_dump(exclude={"kind"}),
        )

    def find_problems(self, job: Job) -> list[str]:
        if job.model.family is not None:
            family_loader.load_architecture(job.model.family)  # JobError where it has none
        if adapter_folder := checkpoint_location.locate_adapter_config(job.model):
            read_config(adapter_folder)  # JobError where it cannot be merged
        folder = checkpoint_location.locate_small_files(job.model.weights, job.model.revision)
        config = family_loader.load_config(folder, job.model)
        if job.model.tensor_parallel == 1:
            return []
        if job.answer.embedding and job.answer.embedding.source == "vision":
            return [
                "model.tensor_parallel: a vision tower is never divided; leave it out and give the pool more workers"
            ]
        from pipeline.model.engines.torch.model_loader import parse_config  # torch takes seconds to import

        try:
            parse_config(config, tp_size=job.model.tensor_parallel, quantize=job.model.quantize)
        except JobError as error:
            return [str(error)]
        return []

    def find_warnings(self, job: Job) -> list[str]:
        if job.model.weights.startswith("builtin:"):
            return [f"{job.model.weights} knows drawn scenes only; for pictures of your own name a real model"]
        return [] if job.workers.generate.gpus else ["workers.generate.gpus is 0, so the model runs on CPU"]

    def copies_beginnings(self, job: Job) -> bool:
        assert isinstance(job.engine, TorchSettings)
        return job.engine.reuse_prefixes

    def count_slots(self, job: Job) -> int:
        assert isinstance(job.engine, TorchSettings)
        return job.engine.slots or DEFAULT_SLOTS
