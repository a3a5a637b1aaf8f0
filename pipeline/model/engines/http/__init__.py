"""The engine that asks a server of the OpenAI protocol: what a job may say about it. `http_engine.py` asks the server.

`model.weights` names the checkpoint that the server runs, if that is of a known family. Only its small files are read:
its rules say how large pictures are shown and how boxes are written, its tokenizer counts. For any other model the job
says `model.family: generic`; then the server decides on these, and `model.coordinates` says how boxes are written.
"""

from __future__ import annotations

from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.model import family_loader
from pipeline.model.engines.base import Engine, EngineType
from pipeline.model.engines.http.choice_scores import APPROXIMATION, find_choice_problems
from pipeline.model.engines.http.http_settings import HttpSettings
from pipeline.model.families.base import Family
from pipeline.types import CoordinateSystem, TimeOrigin

LOCAL_ONLY_KEYS = ("dtype", "attention", "quantize", "tensor_parallel")


class HttpEngineType(EngineType):
    Settings = HttpSettings
    abilities = frozenset({"choices", "embeddings"})
    runs_model_here = False

    def open(self, job: Job) -> Engine:
        from pipeline.model.engines.http.http_engine import HttpEngine

        assert isinstance(job.engine, HttpSettings)
        for problem in self.find_problems(job):
            raise JobError(problem)
        family = family_loader.open_job_family(job)
        return HttpEngine.connect(
            job.engine,
            family.tokenizer,
            add_vision_id=job.media.add_vision_id,
            template_options=family.template_options,
            keeps_sizes=family.knows_model,
        )

    def find_problems(self, job: Job) -> list[str]:
        fields = type(job.model).model_fields
        names = [name for name in LOCAL_ONLY_KEYS if getattr(job.model, name) != fields[name].default]
        names += ["context.rope"] if job.model.context.rope else []
        problems = [f"model.{name}: the server decides that; leave it out with engine http" for name in names]
        if job.model.adapter:
            problems.append("model.adapter: the server loads it; leave it out and give its name there as engine.model")
        if job.answer.embedding is not None and job.answer.embedding.pool is not None:
            problems.append("answer.embedding.pool: the server decides that; leave it out with engine http")
        if job.workers.generate.gpus:
            problems.append("workers.generate.gpus: engine http needs no GPU; leave it out")
        assert isinstance(job.engine, HttpSettings)
        if job.media.steps and job.engine.send == "uri":
            problems.append("engine.send: uri shows the server media without media.steps; leave it out to send pixels")
        problems += find_choice_problems(job)
        return problems + ([] if family_loader.knows_model(job) else find_unknown_model_problems(job, job.engine))

    def find_warnings(self, job: Job) -> list[str]:
        return [] if job.answer.choices is None else [APPROXIMATION]

    def count_slots(self, job: Job) -> int:
        assert isinstance(job.engine, HttpSettings)
        return job.engine.concurrency

    def get_coordinate_system(self, job: Job, family: Family) -> CoordinateSystem | None:
        assert isinstance(job.engine, HttpSettings)
        return job.engine.coordinates or super().get_coordinate_system(job, family)

    def get_time_origin(self, job: Job, family: Family) -> TimeOrigin:
        """Frames are sent as pictures, each with its time in the file."""
        assert isinstance(job.engine, HttpSettings)
        return "source" if job.engine.video == "frames" else family.time_origin


def find_unknown_model_problems(job: Job, settings: HttpSettings) -> list[str]:
    """What a model that nothing is known about does not allow."""
    problems = []
    if not (job.model.weights or settings.model):
        problems.append("engine.model: name the model, because nothing else tells answers of different models apart")
    if settings.video == "native":
        problems.append("engine.video: native is for Qwen-VL models; leave it out to send frames with their times")
    if settings.send == "uri" and (settings.coordinates or job.model.coordinates) == "pixels":
        problems.append("engine.send: uri shows the server originals; say model.coordinates: pixels_of_original")
    return problems
