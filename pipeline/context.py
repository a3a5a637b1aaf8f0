"""RunContext: what every worker needs to know about the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.job.spec import Job
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.families.base import Family
from pipeline.schema.schema import Schema
from pipeline.types import ConfidenceMaps, Turn

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class RunContext:
    """The job, and what the driver derived from it once for all workers. Picklable."""

    job: Job
    schema: Schema | None
    schema_prompt: str | None  # the prompt of the schema, where the job has none
    kept_schema: pa.Schema
    fingerprint_inputs: dict[str, Any]  # everything that the fingerprint hashes
    fingerprint: str
    checkpoint_identity: str  # of the weights that the fingerprint stands for
    adapter_identity: str | None
    model_name: str
    run_id: str
    examples: tuple[Turn, ...] = ()  # questions and answers that stand before each row
    vector_width: int = 0  # of the column `embedding`
    lease_epoch: int = 0  # of the lease that allows the run to commit
    confidence_maps: ConfidenceMaps = field(default_factory=dict)  # for answer.review_below; empty without a score

    @property
    def pinned_job(self) -> Job:
        """The job with its checkpoint and adapter as they were when the run started, which workers load."""
        revisions = {"revision": self.checkpoint_identity, "adapter_revision": self.adapter_identity}
        model = self.job.model.model_copy(update=revisions)
        return self.job.model_copy(update={"model": model})


def locate_small_files(context: RunContext) -> Path:
    model = context.pinned_job.model
    return checkpoint_location.locate_small_files(model.weights, model.revision)


def open_family(context: RunContext) -> Family:
    return family_loader.open_job_family(context.pinned_job)


def get_base_folder() -> Path:
    """The folder that relative paths of a job start from: the current one."""
    return Path.cwd()


def format_model_name(job: Job) -> str:
    if not job.model.weights:
        return job.engine.get_served_model() or ""
    return f"{job.model.weights}@{job.model.revision}" if job.model.revision else job.model.weights
