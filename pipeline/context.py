"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.job.spec import Job
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.families.base import Family
from pipeline.schema.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class RunContext:
    """All that crosses to a worker: the job, and what the driver settled once for everyone."""

    job: Job
    schema: Schema | None
    schema_prompt: str | None  # the question, where the job leaves it to the schema
    kept_schema: pa.Schema
    fingerprint_inputs: dict[str, Any]  # what the fingerprint is of
    fingerprint: str
    model_name: str
    run_id: str
    lease_epoch: int = 0  # of the lease under which the run may commit


def open_family(context: RunContext) -> Family:
    folder = checkpoint_location.locate_small_files(context.job.model.weights, context.job.model.revision)
    return family_loader.load_family(folder, model=context.job.model, add_vision_id=context.job.media.add_vision_id)


def get_base_folder() -> Path:
    """Where a job's relative paths start: the folder the command was given in, as with any command."""
    return Path.cwd()


def format_model_name(job: Job) -> str:
    return f"{job.model.weights}@{job.model.revision}" if job.model.revision else job.model.weights
