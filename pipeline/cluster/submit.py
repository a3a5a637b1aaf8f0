"""Submits a job to a Ray cluster with Ray's job client, follows its log if asked to, and stops a refused job.

A job in shards is as many Ray jobs. Their drivers share the cluster: each takes its part of the CPUs and GPUs.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.cluster.pools import DRIVERS_VARIABLE
from pipeline.cluster.ray_job import read_submission_id
from pipeline.cluster.submission import Submission, check_job_paths, copy_job_files, load_submission
from pipeline.errors import ExitCode, JobError
from pipeline.job import variables
from pipeline.run import log

CLUSTER_START_TIMEOUT_S = 120.0  # until a cluster that is starting accepts jobs
POLL_INTERVAL_S = 1.0
STOP_TIMEOUT_S = 60.0  # until Ray ends a process whose job is stopped
CONNECTION_TIMEOUT_S = 300.0  # without an answer for so long, a job is no longer followed
CONNECTION_ERRORS = (OSError, RuntimeError, aiohttp.ClientError)  # Ray's client, requests and aiohttp
HARMLESS_CODES = (ExitCode.ALL_ANSWERED, ExitCode.FAILED_ROWS)
END_STATUSES = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


def submit_job(submission: Submission, *, follow: bool) -> int:
    """Returns 0, or the exit code of the run if it is followed."""
    job, sent_variables = load_submission(submission)
    check_job_paths(job)
    if follow and sys.stderr.isatty():
        sent_variables["VLBATCH_LOG"] = "text"
    job_path, date = Path(submission.job_path), variables.resolve_date(submission.date, os.environ)
    client = connect_to_cluster(submission.address)
    name = f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    command = ["python", "-m", "pipeline", "run", f"./{job_path.name}", f"--date={date}", *submission.run_arguments]
    if submission.shards > 1:
        sent_variables[DRIVERS_VARIABLE] = str(submission.shards)
    with tempfile.TemporaryDirectory(prefix="vlbatch-") as folder:
        copy_job_files(Path(folder), job_path, job)
        common = {
            "runtime_env": {"working_dir": folder, "env_vars": sent_variables},
            "metadata": {"vlbatch_job": job.name},
        }
        drivers = list_drivers(name, command, submission.shards)
        submission_ids = [submit_with_retries(client, **driver, **common) for driver in drivers]
    address = client.get_address()
    for submission_id in submission_ids:
        print(f"submitted {submission_id} to {address}", file=sys.stderr)
        if not follow:
            arguments = f"--address {address} {submission_id}"
            print(f"  ray job logs --follow {arguments}\n  ray job stop {arguments}", file=sys.stderr)
    return follow_jobs(client, submission_ids, f"--address {address}") if follow else ExitCode.ALL_ANSWERED


def list_drivers(name: str, command: Sequence[str], shards: int) -> Iterator[dict[str, Any]]:
    """What differs between the Ray jobs of a submission."""
    if shards == 1:
        yield {"submission_id": name, "entrypoint": shlex.join(command)}
        return
    for number in range(1, shards + 1):
        yield {
            "submission_id": f"{name}-{number}",
            "entrypoint": shlex.join([*command, f"--shard={number}/{shards}"]),
            "entrypoint_num_cpus": 1,  # else Ray starts all drivers on the head node
        }


def connect_to_cluster(address: str | None) -> JobSubmissionClient:
    """Without an address, Ray's own variables RAY_API_SERVER_ADDRESS and RAY_ADDRESS apply. Never starts a cluster."""
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise JobError(
            f"no cluster: {format_first_line(error)}; give --address http://HOST:8265, or set RAY_ADDRESS. "
            "On Kubernetes: kubectl port-forward service/vlbatch-head-svc 8265"
        ) from error


def submit_with_retries(client: JobSubmissionClient, **request: Any) -> str:
    """Retry while the cluster is starting: its agents come up after its server."""
    deadline = time.monotonic() + CLUSTER_START_TIMEOUT_S
    while True:
        try:
            return str(client.submit_job(**request))
        except RuntimeError as error:
            if "try again later" not in str(error) or time.monotonic() > deadline:
                last_line = str(error).strip().splitlines()[-1]
                raise JobError(f"the cluster does not take the job: {last_line}") from error
            time.sleep(1)


def stop_this_job() -> None:
    """End the Ray job that this process is the driver of as STOPPED, if it is one. Ray then ends the process.

    Whatever the exit code, KubeRay repeats a job that FAILED on a new cluster. It does not repeat one that was STOPPED.
    """
    submission_id = read_submission_id(os.environ)
    if submission_id is None:
        return
    try:
        connect_to_cluster(None).stop_job(submission_id)
    except (JobError, *CONNECTION_ERRORS) as error:
        log.write_message(f"cannot stop this Ray job, so KubeRay may repeat it in vain: {format_first_line(error)}")
    else:
        time.sleep(STOP_TIMEOUT_S)


def follow_jobs(client: JobSubmissionClient, submission_ids: Sequence[str], address: str) -> int:
    """Print the logs of jobs until all end. `address` is the option of `ray job`, for messages."""
    jobs = [f"{address} {submission_id}" for submission_id in submission_ids]
    try:
        asyncio.run(print_logs(client, submission_ids))
    except KeyboardInterrupt:
        stop = "; ".join(f"ray job stop {job}" for job in jobs)
        print(f"no longer following it; it goes on. {stop}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except CONNECTION_ERRORS as error:
        follow = "; ".join(f"ray job logs --follow {job}" for job in jobs)
        print(f"lost the connection: {format_first_line(error)}; the job goes on. {follow}", file=sys.stderr)
        return ExitCode.INTERNAL_ERROR
    codes = [read_exit_code(client, submission_id) for submission_id in submission_ids]
    return next((code for code in codes if code not in HARMLESS_CODES), max(codes))


async def print_logs(client: JobSubmissionClient, submission_ids: Sequence[str]) -> None:
    many = len(submission_ids) > 1
    prefixes = [f"[{number}] " if many else "" for number, _ in enumerate(submission_ids, 1)]
    await asyncio.gather(*(print_log(client, *each) for each in zip(submission_ids, prefixes, strict=True)))


async def print_log(client: JobSubmissionClient, submission_id: str, prefix: str) -> None:
    """When the connection of the log breaks, poll the status of the job for a while."""
    with suppress(*CONNECTION_ERRORS):
        async for lines in client.tail_job_logs(submission_id):
            print("".join(f"{prefix}{line}" for line in lines.splitlines(keepends=True)), end="", flush=True)
    last_answer = time.monotonic()
    while True:
        try:
            if client.get_job_status(submission_id) in END_STATUSES:
                return
            last_answer = time.monotonic()
        except CONNECTION_ERRORS:
            if time.monotonic() - last_answer > CONNECTION_TIMEOUT_S:
                raise
        await asyncio.sleep(POLL_INTERVAL_S)


def read_exit_code(client: JobSubmissionClient, submission_id: str) -> int:
    info: Any = client.get_job_info(submission_id)
    if info.status == JobStatus.FAILED:  # the log has said why
        return int(info.driver_exit_code or ExitCode.INTERNAL_ERROR)
    print(f"{submission_id}: {info.status}: {info.message}", file=sys.stderr)
    return ExitCode.ALL_ANSWERED if info.status == JobStatus.SUCCEEDED else ExitCode.TERMINATED


def format_first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
