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

from pipeline.errors import JobError
from pipeline.job import load_job, variables
from pipeline.job.spec import Job
from pipeline.schema import load_schema as schemas

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "schemas")
STOPPED, INTERRUPTED = 143, 130  # what the run itself says when it is terminated, and whoever follows it
START_S = 120.0  # what a cluster that is just starting may take until it accepts jobs
LOOK_S, LOST_S = 1.0, 300.0  # between two looks at a job; without an answer for so long it is no longer followed
UNREACHED = (OSError, RuntimeError, aiohttp.ClientError)  # what Ray's client raises, of requests' and aiohttp's too
ENDS = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


@dataclass(frozen=True, slots=True)
class Order:
    """What the command says. `words` follow `run JOB` on the cluster."""

    path: str
    changes: Sequence[str]
    date: str | None
    words: Sequence[str]
    address: str | None
    grace_s: int


def submit(order: Order, *, follow: bool) -> int:
    """Submit, and give the run's exit code where it is followed."""
    job, sent = read(order)
    check(job)
    if follow and sys.stderr.isatty():  # a person reads along
        sent["VLBATCH_LOG"] = "text"
    path, day = Path(order.path), variables.today(order.date, os.environ)
    client = connect(order.address)
    with tempfile.TemporaryDirectory(prefix="vlbatch-") as folder:
        pack(Path(folder), path, job)
        name = send(
            client,
            entrypoint=shlex.join(["python", "-m", "pipeline", "run", f"./{path.name}", f"--date={day}", *order.words]),
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
        asyncio.run(tail(client, name))
    except KeyboardInterrupt:
        print(f"no longer followed; it goes on. ray job stop {hint}", file=sys.stderr)
        return INTERRUPTED
    except UNREACHED as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"lost sight of it: {line}; it goes on. ray job logs --follow {hint}", file=sys.stderr)
        return 1
    return ended(client, name)


def read(order: Order) -> tuple[Job, dict[str, str]]:
    """The job, and the variables that it needs there: what it names and is set here, less what is secret."""
    _, given = load_job.compose(load_job.read(order.path), str(order.path))
    for change in order.changes:
        load_job.set_key(given, change)
    named = variables.variables(given)
    secret = {name for name, places in named.items() if all(load_job.is_secret(at) for at in places)}
    here = {**dict.fromkeys(secret, "the cluster's own"), **os.environ}
    job = load_job.load(order.path, changes=order.changes, date=order.date, environment=here)
    sent = {name: os.environ[name] for name in sorted(named.keys() - secret) if name in os.environ}
    return job, {**sent, "RAY_JOB_STOP_WAIT_TIME_S": str(order.grace_s)}


def check(job: Job) -> None:
    """What can be known here. Whether manifest and output can be reached is the cluster's to say."""
    schema = schemas.load(job.answer.schema_, base=Path.cwd())
    if schema and (problems := schemas.problems(schema)):
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


def connect(address: str | None) -> JobSubmissionClient:
    """RAY_API_SERVER_ADDRESS and RAY_ADDRESS are Ray's own; a cluster is never started."""
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise JobError(
            f"no cluster: {line}; give --address http://HOST:8265, or set RAY_ADDRESS. "
            "On Kubernetes: kubectl port-forward service/vlbatch-head-svc 8265"
        ) from error


def pack(folder: Path, path: Path, job: Job) -> None:
    """The code that checked the job, the job, and what its schema is made of."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(path, folder / path.name)
    if schema := schema_file(job):
        for file in sorted(schema.parent.glob("*.py")) if schema.suffix == ".py" else [schema]:
            target = folder / os.path.relpath(file, Path.cwd())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def schema_file(job: Job) -> Path | None:
    """The user's own, where the job names one."""
    name = (job.answer.schema_ or "").rpartition(":")[0] or job.answer.schema_ or ""
    if not name.endswith((".py", ".json")):
        return None
    file = (Path.cwd() / name).absolute()
    if not file.is_relative_to(Path.cwd()):
        raise JobError(f"answer.schema: {name} lies outside of this folder; submit from a folder that holds it")
    return file


def send(client: JobSubmissionClient, **job: Any) -> str:
    """Sent again while the cluster says that it is not ready yet: its agents come after its front door."""
    ends = time.monotonic() + START_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:  # what the server or the upload said
            if "try again later" not in str(error) or time.monotonic() > ends:
                said = str(error).strip().splitlines()[-1]
                raise JobError(f"the cluster does not take the job: {said}") from error
            time.sleep(1)


async def tail(client: JobSubmissionClient, name: str) -> None:
    """The driver's log as it comes. Where the connection breaks, for a while it is asked whether the job has ended."""
    with suppress(*UNREACHED):
        async for lines in client.tail_job_logs(name):
            print(lines, end="", flush=True)
    heard = time.monotonic()
    while True:
        try:
            if client.get_job_status(name) in ENDS:
                return
            heard = time.monotonic()
        except UNREACHED:
            if time.monotonic() - heard > LOST_S:
                raise
        await asyncio.sleep(LOOK_S)


def ended(client: JobSubmissionClient, name: str) -> int:
    """Ray knows success, failure and stop; the run's own exit code says which."""
    info: Any = client.get_job_info(name)
    print(f"{name}: {info.status}: {info.message}" if info.status != JobStatus.FAILED else "", end="", file=sys.stderr)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    return STOPPED if info.status == JobStatus.STOPPED else int(info.driver_exit_code or 1)
