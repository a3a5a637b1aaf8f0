"""The engine that asks a server of the OpenAI protocol: what a job may say about it. `http_engine.py` asks the server.

`model.weights` still names a checkpoint, of which only the small files are read: its rules say how large pictures are
shown and how boxes are written, its tokenizer counts. Name the checkpoint that the server runs. If nobody knows it,
any Qwen-VL gives sizes, and `engine.coordinates` says how that model writes boxes.
"""

from __future__ import annotations

from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engines.base import Engine, EngineType
from pipeline.model.engines.http.http_settings import HttpSettings
from pipeline.model.families.base import Family
from pipeline.types import CoordinateSystem, TimeOrigin

LOCAL_ONLY_KEYS = ("dtype", "attention", "quantize", "tensor_parallel")


class HttpEngineType(EngineType):
    Settings = HttpSettings
    runs_model_here = False

    def open(self, job: Job) -> Engine:
        from pipeline.model.engines.http.http_engine import HttpEngine

        assert isinstance(job.engine, HttpSettings)
        for problem in self.find_problems(job):
            raise JobError(problem)
        folder = checkpoint_location.locate_small_files(job.model.weights, job.model.revision)
        return HttpEngine.connect(
            job.engine,
            family_loader.load_tokenizer(folder),
            add_vision_id=job.media.add_vision_id,
            template_options=family_loader.load_job_family(folder, job).template_options,
        )

    def find_problems(self, job: Job) -> list[str]:
        fields = type(job.model).model_fields
        names = [name for name in LOCAL_ONLY_KEYS if getattr(job.model, name) != fields[name].default]
        names += ["context.rope"] if job.model.context.rope else []
        problems = [f"model.{name}: the server decides that; leave it out with engine http" for name in names]
        if job.workers.generate.gpus:
            problems.append("workers.generate.gpus: engine http needs no GPU; leave it out")
        assert isinstance(job.engine, HttpSettings)
        if job.media.steps and job.engine.send == "uri":
            problems.append("engine.send: uri shows the server media without media.steps; leave it out to send pixels")
        return problems

    def count_slots(self, job: Job) -> int:
        assert isinstance(job.engine, HttpSettings)
        return job.engine.concurrency

    def get_coordinate_system(self, job: Job, family: Family) -> CoordinateSystem:
        assert isinstance(job.engine, HttpSettings)
        return job.engine.coordinates or family.coordinates

    def get_time_origin(self, job: Job, family: Family) -> TimeOrigin:
        """Frames are sent as pictures, each with its time in the file."""
        assert isinstance(job.engine, HttpSettings)
        return "source" if job.engine.video == "frames" else family.time_origin
