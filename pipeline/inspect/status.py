"""An output folder -> what is answered, what is wrong, what is left, and who works on it. Nothing else is read.

Rows are counted by the footers of their parts, some thousand bytes of each; what is wrong is what the dead letters
say that commits name. How many rows there are in all is what the last run found in its manifest; what it has done of
them since, whether it ended, died or is at work, is in the parts that name it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.output import dead_letters
from pipeline.output.commit import COMMIT_NOTE_KEY
from pipeline.output.dead_letters import READER_THREADS
from pipeline.output.store import OutputStore
from pipeline.retry_policy import Truncated
from pipeline.run import retry_errors
from pipeline.run.lease import LeaseHolder, read_newest_holder
from pipeline.run.progress import format_duration

MAX_LISTED_RUNS = 10  # that are listed


@dataclass(frozen=True)
class OutputReader:
    """The answers to one question in an output."""

    store: OutputStore
    fingerprint: str
    question_count: int  # how many have answers here

    @cached_property
    def lease_holder(self) -> LeaseHolder | None:
        """The newest run, by the order of leases and nobody's clock."""
        return read_newest_holder(self.store, self.fingerprint)

    @cached_property
    def run_reports(self) -> list[dict[str, Any]]:
        """What runs of this question reported, the newest first."""
        with ThreadPoolExecutor(READER_THREADS) as readers:
            reports = list(
                readers.map(
                    lambda run: read_run_document(self.store, run, "report"), list_runs_with(self.store, "report")
                )
            )
        return [each for each in reports if each["fingerprint"] == self.fingerprint]

    def read_newest_plan(self, *, full_manifest: bool = False) -> tuple[str, dict[str, Any]]:
        """The newest run that planned, and what it found to do; `whole`: in all of its manifest."""
        runs, last = list_runs_with(self.store, "plan"), self.lease_holder.run if self.lease_holder else ""
        for run in sorted(runs, key=lambda run: run != last):
            plan = read_run_document(self.store, run, "plan")
            if plan["fingerprint"] == self.fingerprint and ("gone" in plan or not full_manifest):
                return run, plan
        return "", {}

    @cached_property
    def question(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.store.read_object(f"questions/{self.fingerprint}.json"))
        return said

    @cached_property
    def job(self) -> dict[str, Any]:
        """The job of the newest run, as it was resolved, whether that run has ended or not."""
        if self.lease_holder is None or "job.json" not in self.store.list_names(f"runs/{self.lease_holder.run}"):
            return {}
        return read_run_document(self.store, self.lease_holder.run, "job")

    def read_commit_notes(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Of each part its name, its rows, and what its commit noted."""
        folder = f"data/fp={self.fingerprint}"

        def note(name: str) -> tuple[str, int, dict[str, Any]]:
            footer = self.store.run_with_retries(f"{folder}/{name}", lambda: self.read_footer(f"{folder}/{name}"))
            return name.removesuffix(".parquet"), footer.num_rows, json.loads(footer.metadata[COMMIT_NOTE_KEY])

        with ThreadPoolExecutor(READER_THREADS) as readers:
            yield from readers.map(note, sorted(self.store.list_names(folder)))

    def read_footer(self, name: str) -> pq.FileMetaData:
        with self.store.filesystem.open(f"{self.store.root}/{name}", "rb") as file:
            try:
                return pq.read_metadata(file)
            except pa.ArrowInvalid as error:
                raise Truncated(f"{name} is cut short") from error

    def read_failed_rows(self) -> Iterator[dead_letters.DeadLetter]:
        """The rows of the manifest that are still wrong, each once; of which manifest, the newest run says."""
        _, plan = self.read_newest_plan(full_manifest=True)
        parts, written = (self.store.list_names(f"{folder}/fp={self.fingerprint}") for folder in ("data", "errors"))
        gone = set(plan.get("gone", ()))
        failed = {
            name: own for name, own in dead_letters.find_failed_chunks(parts, written).items() if name not in gone
        }
        where, seen = retry_errors.RetryScope(failed, (), plan.get("since", ())), set()
        for letter in retry_errors.read_failed_rows(where, self.store, self.fingerprint):
            row = hash((letter.id, letter.question))
            if row not in seen:
                seen.add(row)
                yield letter


def open_output_reader(path: str, question: str | None = None) -> OutputReader:
    """The question that is named, or the one that was asked last."""
    store = OutputStore(path)
    known = {name.removesuffix(".json") for name in store.list_names("questions")}
    if not known:
        raise OutputError(f"{path}: there is no output of a run here; give the path that output.path of a job names")
    if question is not None:
        if question not in known:
            raise OutputError(f"{path}: no question {question} was asked here; there is {', '.join(sorted(known))}")
        return OutputReader(store, question, len(known))
    last = next(
        (read_run_document(store, run, "plan")["fingerprint"] for run in list_runs_with(store, "plan")), max(known)
    )
    return OutputReader(store, last, len(known))


def list_runs_with(store: OutputStore, document: str) -> list[str]:
    """Runs that have told this, the newest first."""
    return sorted(
        (name.partition("/")[0] for name in store.list_names("runs") if name.endswith(f"/{document}.json")),
        reverse=True,
    )


def read_run_document(store: OutputStore, run: str, document: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(store.read_object(f"runs/{run}/{document}.json"))
    return said


@dataclass
class OutputStatus:
    path: str
    name: str
    fingerprint: str
    questions: int
    model: str
    others: list[str] = field(default_factory=list)  # fingerprints
    parts: int = 0
    answered: int = 0
    wrong: Counter[str] = field(default_factory=Counter)  # "stage/kind"
    examples: dict[str, str] = field(default_factory=dict)
    rows: int | None = None  # of the manifest, as the last run saw it
    left: int | None = None  # of those
    runs: list[dict[str, Any]] = field(default_factory=list)
    lease: LeaseHolder | None = None  # the newest; `held` says whether somebody is at work


def read_status(path: str, question: str | None = None) -> OutputStatus:
    folder = open_output_reader(path, question)
    run, plan = folder.read_newest_plan()
    found = OutputStatus(
        path=folder.store.path,
        name=folder.job.get("name", ""),
        fingerprint=folder.fingerprint,
        questions=folder.question_count,
        others=sorted(
            {name.removesuffix(".json") for name in folder.store.list_names("questions")} - {folder.fingerprint}
        ),
        model=folder.job.get("model", {}).get("weights", ""),
        rows=plan.get("rows"),
        runs=folder.run_reports,
        lease=folder.lease_holder,
    )
    done = 0
    for part, rows, note in folder.read_commit_notes():
        found.parts += 1
        found.answered += rows
        done += (
            note["answered"] + note["failed"]
            if note.get("run") == run and dead_letters.split_part_name(part)[1] == 0
            else 0
        )
    found.left = max(0, plan["rows_left"] - done) if plan else None
    for letter in folder.read_failed_rows():
        name = f"{letter.stage}/{letter.kind}"
        found.wrong[name] += 1
        found.examples.setdefault(name, letter.message)
    return found


def format_status(output_status: OutputStatus) -> Iterator[str]:
    """For a terminal."""
    yield f"{output_status.path}: {output_status.name or 'no run has begun'}"
    known = ", ".join(output_status.others)
    others = f", the newest of {output_status.questions} (--question shows another: {known})" if known else ""
    yield f"question  {output_status.fingerprint}{others}  {output_status.model}".rstrip()
    yield f"answered  {format_count(output_status.answered, 'row')} in {format_count(output_status.parts, 'part')}"
    yield f"wrong     {format_count(output_status.wrong.total(), 'row')}"
    for name, count in output_status.wrong.most_common():
        yield f"  {count:>8,}  {name}: {output_status.examples[name].strip().splitlines()[-1]}"
    if output_status.left is None:
        yield "left      not known: no run has come so far"
    else:
        yield f"left      {output_status.left:,} of {output_status.rows:,} rows, as the last run counted them"
    if (held := output_status.lease) and held.held:
        yield f"at work   run {held.run} on {held.host}, since {held.since}; seen last {held.seen}"
    else:
        yield "at work   nobody"
    if output_status.runs:
        yield "runs"
        yield from format_runs(output_status.runs[:MAX_LISTED_RUNS])
    if output_status.left:
        yield "next      give the same run command again: it asks what is left"
    if output_status.wrong:
        yield "again     the run command with --retry-errors asks what is wrong again"
    yield f"look      python -m pipeline report {output_status.path}"


def format_count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def format_runs(runs: list[dict[str, Any]]) -> Iterator[str]:
    for run in runs:
        done = run["answered"] + run["failed"]
        speed = f"{done / run['seconds']:.1f} rows/s" if done and run["seconds"] else "nothing to do"
        yield (
            f"  {format_run_time(run['run'])}  {run['status']:<8} {run['answered']:>9,} answered {run['failed']:>7,} failed  "
            f"{format_duration(run['seconds']):>8}  {speed:<14} {format_versions(run)}"
        )


def format_run_time(run: str) -> str:
    """
    >>> when("20261121T071958-ab12")
    '2026-11-21 07:19'
    """
    return f"{datetime.strptime(run[:15], '%Y%m%dT%H%M%S'):%Y-%m-%d %H:%M}"


def format_versions(run: Mapping[str, Any]) -> str:
    named = ("ray", "torch", "transformers")
    return ", ".join(f"{name} {run['versions'][name]}" for name in named if name in run.get("versions", {}))


def to_json_dict(output_status: OutputStatus) -> dict[str, Any]:
    counts = {"wrong": dict(output_status.wrong), "examples": output_status.examples}
    return {**asdict(OutputStatus(**{**vars(output_status), "wrong": Counter(), "examples": {}})), **counts}
