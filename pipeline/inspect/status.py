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
from pipeline.output.commit import NOTE
from pipeline.output.dead_letters import READERS
from pipeline.output.store import Store
from pipeline.retry_policy import Truncated
from pipeline.run import retry_errors
from pipeline.run.lease import Holder, newest
from pipeline.run.progress import clock

RUNS = 10  # that are listed


@dataclass(frozen=True)
class Folder:
    """The answers to one question in an output."""

    store: Store
    fingerprint: str
    questions: int  # how many have answers here

    @cached_property
    def holder(self) -> Holder | None:
        """The newest run, by the order of leases and nobody's clock."""
        return newest(self.store, self.fingerprint)

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        """What runs of this question reported, the newest first."""
        with ThreadPoolExecutor(READERS) as readers:
            reports = list(readers.map(lambda run: told(self.store, run, "report"), runs_with(self.store, "report")))
        return [each for each in reports if each["fingerprint"] == self.fingerprint]

    def plan(self, *, whole: bool = False) -> tuple[str, dict[str, Any]]:
        """The newest run that planned, and what it found to do; `whole`: in all of its manifest."""
        runs, last = runs_with(self.store, "plan"), self.holder.run if self.holder else ""
        for run in sorted(runs, key=lambda run: run != last):
            plan = told(self.store, run, "plan")
            if plan["fingerprint"] == self.fingerprint and ("gone" in plan or not whole):
                return run, plan
        return "", {}

    @cached_property
    def question(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.store.read(f"questions/{self.fingerprint}.json"))
        return said

    @cached_property
    def job(self) -> dict[str, Any]:
        """The job of the newest run, as it was resolved, whether that run has ended or not."""
        if self.holder is None or "job.json" not in self.store.names(f"runs/{self.holder.run}"):
            return {}
        return told(self.store, self.holder.run, "job")

    def notes(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Of each part its name, its rows, and what its commit noted."""
        folder = f"data/fp={self.fingerprint}"

        def note(name: str) -> tuple[str, int, dict[str, Any]]:
            footer = self.store.persist(f"{folder}/{name}", lambda: self.footer(f"{folder}/{name}"))
            return name.removesuffix(".parquet"), footer.num_rows, json.loads(footer.metadata[NOTE])

        with ThreadPoolExecutor(READERS) as readers:
            yield from readers.map(note, sorted(self.store.names(folder)))

    def footer(self, name: str) -> pq.FileMetaData:
        with self.store.filesystem.open(f"{self.store.root}/{name}", "rb") as file:
            try:
                return pq.read_metadata(file)
            except pa.ArrowInvalid as error:
                raise Truncated(f"{name} is cut short") from error

    def wrong(self) -> Iterator[dead_letters.Letter]:
        """The rows of the manifest that are still wrong, each once; of which manifest, the newest run says."""
        _, plan = self.plan(whole=True)
        parts, written = (self.store.names(f"{folder}/fp={self.fingerprint}") for folder in ("data", "errors"))
        gone = set(plan.get("gone", ()))
        failed = {name: own for name, own in dead_letters.failing(parts, written).items() if name not in gone}
        where, seen = retry_errors.Scope(failed, (), plan.get("since", ())), set()
        for letter in retry_errors.wrong(where, self.store, self.fingerprint):
            row = hash((letter.id, letter.question))
            if row not in seen:
                seen.add(row)
                yield letter


def open_output(path: str, question: str | None = None) -> Folder:
    """The question that is named, or the one that was asked last."""
    store = Store(path)
    known = {name.removesuffix(".json") for name in store.names("questions")}
    if not known:
        raise OutputError(f"{path}: there is no output of a run here; give the path that output.path of a job names")
    if question is not None:
        if question not in known:
            raise OutputError(f"{path}: no question {question} was asked here; there is {', '.join(sorted(known))}")
        return Folder(store, question, len(known))
    last = next((told(store, run, "plan")["fingerprint"] for run in runs_with(store, "plan")), max(known))
    return Folder(store, last, len(known))


def runs_with(store: Store, what: str) -> list[str]:
    """Runs that have told this, the newest first."""
    return sorted(
        (name.partition("/")[0] for name in store.names("runs") if name.endswith(f"/{what}.json")), reverse=True
    )


def told(store: Store, run: str, what: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(store.read(f"runs/{run}/{what}.json"))
    return said


@dataclass
class Status:
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
    lease: Holder | None = None  # the newest; `held` says whether somebody is at work


def status(path: str, question: str | None = None) -> Status:
    folder = open_output(path, question)
    run, plan = folder.plan()
    found = Status(
        path=folder.store.path,
        name=folder.job.get("name", ""),
        fingerprint=folder.fingerprint,
        questions=folder.questions,
        others=sorted({name.removesuffix(".json") for name in folder.store.names("questions")} - {folder.fingerprint}),
        model=folder.job.get("model", {}).get("weights", ""),
        rows=plan.get("rows"),
        runs=folder.runs,
        lease=folder.holder,
    )
    done = 0
    for part, rows, note in folder.notes():
        found.parts += 1
        found.answered += rows
        done += note["answered"] + note["failed"] if note.get("run") == run and dead_letters.split(part)[1] == 0 else 0
    found.left = max(0, plan["rows_left"] - done) if plan else None
    for letter in folder.wrong():
        name = f"{letter.stage}/{letter.kind}"
        found.wrong[name] += 1
        found.examples.setdefault(name, letter.message)
    return found


def lines(found: Status) -> Iterator[str]:
    """For a terminal."""
    yield f"{found.path}: {found.name or 'no run has begun'}"
    known = ", ".join(found.others)
    others = f", the newest of {found.questions} (--question shows another: {known})" if known else ""
    yield f"question  {found.fingerprint}{others}  {found.model}".rstrip()
    yield f"answered  {counted(found.answered, 'row')} in {counted(found.parts, 'part')}"
    yield f"wrong     {counted(found.wrong.total(), 'row')}"
    for name, count in found.wrong.most_common():
        yield f"  {count:>8,}  {name}: {found.examples[name].strip().splitlines()[-1]}"
    if found.left is None:
        yield "left      not known: no run has come so far"
    else:
        yield f"left      {found.left:,} of {found.rows:,} rows, as the last run counted them"
    if (held := found.lease) and held.held:
        yield f"at work   run {held.run} on {held.host}, since {held.since}; seen last {held.seen}"
    else:
        yield "at work   nobody"
    if found.runs:
        yield "runs"
        yield from table(found.runs[:RUNS])
    if found.left:
        yield "next      give the same run command again: it asks what is left"
    if found.wrong:
        yield "again     the run command with --retry-errors asks what is wrong again"
    yield f"look      python -m pipeline report {found.path}"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    for run in runs:
        done = run["answered"] + run["failed"]
        speed = f"{done / run['seconds']:.1f} rows/s" if done and run["seconds"] else "nothing to do"
        yield (
            f"  {when(run['run'])}  {run['status']:<8} {run['answered']:>9,} answered {run['failed']:>7,} failed  "
            f"{clock(run['seconds']):>8}  {speed:<14} {versions(run)}"
        )


def when(run: str) -> str:
    """
    >>> when("20261121T071958-ab12")
    '2026-11-21 07:19'
    """
    return f"{datetime.strptime(run[:15], '%Y%m%dT%H%M%S'):%Y-%m-%d %H:%M}"


def versions(run: Mapping[str, Any]) -> str:
    named = ("ray", "torch", "transformers")
    return ", ".join(f"{name} {run['versions'][name]}" for name in named if name in run.get("versions", {}))


def as_json(found: Status) -> dict[str, Any]:
    counts = {"wrong": dict(found.wrong), "examples": found.examples}
    return {**asdict(Status(**{**vars(found), "wrong": Counter(), "examples": {}})), **counts}
