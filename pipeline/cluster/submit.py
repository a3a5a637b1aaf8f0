"""A job file -> a job on a Ray cluster, by Ray's own way of submitting.

The job is checked here first, for a typo should not cost the start of a cluster. What travels is this very code, the
job file as it is and the schema it names, so that what was checked is what runs. Variables that the job names travel
by value; those of secret keys, and credentials, never do: the cluster has its own.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.errors import ExitCode, JobError
from pipeline.job import job_loader, keys, variables
from pipeline.job.spec import Job
from pipeline.schema import schema_loader

ROOT = Path(__file__).parents[2]
SHIPPED_PACKAGES = ("pipeline", "schemas")
CLUSTER_START_TIMEOUT_S = 120.0  # what a cluster that is just starting may take until it accepts jobs
POLL_INTERVAL_S, CONNECTION_TIMEOUT_S = (
    1.0,
    300.0,
)  # between two looks at a job; without an answer for so long it is no longer followed
CONNECTION_ERRORS = (
    OSError,
    RuntimeError,
    aiohttp.ClientError,
)  # what Ray's client raises, of requests' and aiohttp's too
END_STATUSES = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


@dataclass(frozen=True, slots=True)
class Submission:
    """What the command says. `words` follow `run JOB` on the cluster."""

    job_path: str
    overrides: Sequence[str]
    date: str | None
    run_arguments: Sequence[str]
    address: str | None
    grace_s: int


def submit_job(submission: Submission, *, follow: bool) -> int:
    """Submit, and give the run's exit code where it is followed."""
    job, sent = load_submission(submission)
    check_job(job)
    if follow and sys.stderr.isatty():  # a person reads along
        sent["VLBATCH_LOG"] = "text"
    path, day = Path(submission.job_path), variables.resolve_date(submission.date, os.environ)
    client = connect_to_cluster(submission.address)
    with tempfile.TemporaryDirectory(prefix="vlbatch-") as folder:
        copy_job_files(Path(folder), path, job)
        name = submit_with_retries(
            client,
            entrypoint=shlex.join(
                ["python", "-m", "pipeline", "run", f"./{path.name}", f"--date={day}", *submission.run_arguments]
            ),
            submission_id=f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            runtime_env={"working_dir": folder, "env_vars": sent},
            metadata={"vlbatch_job": job.name},
        )
    where = client.get_address()
    print(f"submitted {name} to {where}", file=sys.stderr)
    hint = f"--address {where} {name}"
    if not follow:
        print(f"  ray job logs --follow {hint}\n  ray job stop {hint}", file=sys.stderr)
        return 0
    try:
        asyncio.run(follow_log(client, name))
    except KeyboardInterrupt:
        print(f"no longer followed; it goes on. ray job stop {hint}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except CONNECTION_ERRORS as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"lost sight of it: {line}; it goes on. ray job logs --follow {hint}", file=sys.stderr)
        return ExitCode.INTERNAL_ERROR
    return read_exit_code(client, name)


def load_submission(submission: Submission) -> tuple[Job, dict[str, str]]:
    """The job, and the variables that it needs there: what it names and is set here, less what is secret."""
    _, given = job_loader.parse_yaml(job_loader.read_job_text(submission.job_path), str(submission.job_path))
    for change in submission.overrides:
        job_loader.set_key(given, change)
    named = variables.find_variables(given)
    secret = {name for name, places in named.items() if all(keys.is_secret_key(at) for at in places)}
    here = {**dict.fromkeys(secret, "the cluster's own"), **os.environ}
    job = job_loader.load_job(submission.job_path, changes=submission.overrides, date=submission.date, environment=here)
    sent = {name: os.environ[name] for name in sorted(named.keys() - secret) if name in os.environ}
    return job, {**sent, "RAY_JOB_STOP_WAIT_TIME_S": str(submission.grace_s)}


def check_job(job: Job) -> None:
    """What can be known here. Whether manifest and output can be reached is the cluster's to say."""
    schema = schema_loader.load_schema(job.answer.schema_, base_folder=Path.cwd())
    if schema and (problems := schema_loader.find_problems(schema)):
        raise JobError("\n".join(problems))
    weights = [job.model.weights] if job.model.weights.startswith(".") else []
    for where, url in [
        *(("input.manifest", url) for url in job.input.manifest),
        ("output.path", job.output.path),
        *(("model.weights", url) for url in weights),
    ]:
        if "://" not in url and not url.startswith("/"):
            raise JobError(
                f"{where}: {url} is a path in this folder, which the cluster does not see; "
                "name object storage (s3://...), or a path from the root of a disk that every node has"
            )


def connect_to_cluster(address: str | None) -> JobSubmissionClient:
    """RAY_API_SERVER_ADDRESS and RAY_ADDRESS are Ray's own; a cluster is never started."""
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise JobError(
            f"no cluster: {line}; give --address http://HOST:8265, or set RAY_ADDRESS. "
            "On Kubernetes: kubectl port-forward service/vlbatch-head-svc 8265"
        ) from error


def copy_job_files(folder: Path, job_path: Path, job: Job) -> None:
    """The code that checked the job, the job, and what its schema is made of."""
    for package in SHIPPED_PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(job_path, folder / job_path.name)
    if schema := find_schema_file(job):
        for file in sorted(schema.parent.glob("*.py")) if schema.suffix == ".py" else [schema]:
            target = folder / os.path.relpath(file, Path.cwd())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def find_schema_file(job: Job) -> Path | None:
    """The user's own, where the job names one."""
    name = (job.answer.schema_ or "").rpartition(":")[0] or job.answer.schema_ or ""
    if not name.endswith((".py", ".json")):
        return None
    file = (Path.cwd() / name).absolute()
    if not file.is_relative_to(Path.cwd()):
        raise JobError(f"answer.schema: {name} lies outside of this folder; submit from a folder that holds it")
    return file


def submit_with_retries(client: JobSubmissionClient, **request: Any) -> str:
    """Sent again while the cluster says that it is not ready yet: its agents come after its front door."""
    ends = time.monotonic() + CLUSTER_START_TIMEOUT_S
    while True:
        try:
            return str(client.submit_job(**request))
        except RuntimeError as error:  # what the server or the upload said
            if "try again later" not in str(error) or time.monotonic() > ends:
                said = str(error).strip().splitlines()[-1]
                raise JobError(f"the cluster does not take the job: {said}") from error
            time.sleep(1)


async def follow_log(client: JobSubmissionClient, submission_id: str) -> None:
    """The driver's log as it comes. Where the connection breaks, for a while it is asked whether the job has ended."""
    with suppress(*CONNECTION_ERRORS):
        async for lines in client.tail_job_logs(submission_id):
            print(lines, end="", flush=True)
    heard = time.monotonic()
    while True:
        try:
            if client.get_job_status(submission_id) in END_STATUSES:
                return
            heard = time.monotonic()
        except CONNECTION_ERRORS:
            if time.monotonic() - heard > CONNECTION_TIMEOUT_S:
                raise
        await asyncio.sleep(POLL_INTERVAL_S)


def read_exit_code(client: JobSubmissionClient, submission_id: str) -> int:
    """Ray knows success, failure and stop; the run's own exit code says which."""
    info: Any = client.get_job_info(submission_id)
    print(
        f"{submission_id}: {info.status}: {info.message}" if info.status != JobStatus.FAILED else "",
        end="",
        file=sys.stderr,
    )
    if info.status == JobStatus.SUCCEEDED:
        return ExitCode.ALL_ANSWERED
    return ExitCode.TERMINATED if info.status == JobStatus.STOPPED else int(info.driver_exit_code or ExitCode.INTERNAL_ERROR)
