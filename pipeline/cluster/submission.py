"""Prepares a job for a Ray cluster: checks it, chooses the variables to send and copies the files that it needs.

The job is checked here so that a typo does not cost the start of a cluster. The code that checked the job travels
with it, so that the same code runs it. Variables that the job names are sent by value, and Ray's dashboard shows them;
so those of secret keys and of `engine.body` are not sent: the cluster has its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import JobError
from pipeline.job import job_loader, keys, variables
from pipeline.job.spec import Job
from pipeline.schema import schema_loader

ROOT = Path(__file__).parents[2]
SHIPPED_PACKAGES = ("pipeline", "schemas")


@dataclass(frozen=True, slots=True)
class Submission:
    """The command line of `submit`."""

    job_path: str
    overrides: Sequence[str]
    date: str | None
    run_arguments: Sequence[str]  # of `run JOB` on the cluster
    address: str | None
    grace_s: int
    shards: int = 1  # as many Ray jobs


def load_submission(submission: Submission) -> tuple[Job, dict[str, str]]:
    """The job, and the environment variables to send: those that it names and that are set here, except secrets."""
    _, values = job_loader.parse_yaml(job_loader.read_job_text(submission.job_path), str(submission.job_path))
    for override in submission.overrides:
        job_loader.set_key(values, override)
    named = variables.find_variables(values)
    secret = {name for name, places in named.items() if any(keys.may_hold_secret(place) for place in places)}
    environment = {**dict.fromkeys(secret, "the cluster's own"), **os.environ}
    job = job_loader.load_job(
        submission.job_path, changes=submission.overrides, date=submission.date, environment=environment
    )
    sent = {name: os.environ[name] for name in sorted(named.keys() - secret) if name in os.environ}
    return job, {**sent, "RAY_JOB_STOP_WAIT_TIME_S": str(submission.grace_s)}


def check_job_paths(job: Job) -> None:
    """Check what can be checked here. Only the cluster can tell whether it reaches the manifest and the output."""
    schema = schema_loader.load_answer_schema(job.answer, base_folder=Path.cwd())
    if schema and (problems := schema_loader.find_problems(schema)):
        raise JobError("\n".join(f"answer.schema: {problem}" for problem in problems))
    named = (("model.weights", job.model.weights), ("model.adapter", job.model.adapter))
    for key, url in [
        *(("input.manifest", url) for url in job.input.manifest),
        ("output.path", job.output.path),
        *((key, name) for key, name in named if name and name.startswith(".")),
    ]:
        if "://" not in url and not url.startswith("/"):
            raise JobError(
                f"{key}: {url} is a path in this folder, which the cluster does not see; "
                "name object storage (s3://...), or a path from the root of a disk that every node has"
            )


def copy_job_files(folder: Path, job_path: Path, job: Job) -> None:
    """Copy this code, the job file and the files of its schema."""
    for package in SHIPPED_PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(job_path, folder / job_path.name)
    if schema_file := find_schema_file(job):
        files = sorted(schema_file.parent.glob("*.py")) if schema_file.suffix == ".py" else [schema_file]
        for file in files:  # a schema in Python may import its neighbours
            target = folder / os.path.relpath(file, Path.cwd())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def find_schema_file(job: Job) -> Path | None:
    """None if the job has no schema file of its own."""
    name = (job.answer.schema_ or "").rpartition(":")[0] or job.answer.schema_ or ""
    if not name.endswith((".py", ".json")):
        return None
    file = (Path.cwd() / name).absolute()
    if not file.is_relative_to(Path.cwd()):
        raise JobError(f"answer.schema: {name} lies outside of this folder; submit from a folder that holds it")
    return file
