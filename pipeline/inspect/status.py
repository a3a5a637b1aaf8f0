"""What is answered, failed and left in an output folder, and which run works on it; as text or JSON.

Rows are counted from the footers of the parts. The newest run counted the rows of its manifest before it started;
the parts that name this run are what it has done since, whether it ended, died or still runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from pipeline.command_text import format_command
from pipeline.inspect.output_reader import RunCommits, open_output_reader
from pipeline.inspect.shard_status import ShardStatus, format_shards, read_shards
from pipeline.run.claims import LeaseHolder
from pipeline.run.progress import format_count, format_duration

MAX_LISTED_RUNS = 10


@dataclass
class OutputStatus:
    """The field names are the keys of `status --json`."""

    path: str
    name: str
    fingerprint: str
    questions: int
    model: str
    others: list[str] = field(default_factory=list)  # fingerprints
    parts: int = 0
    answered: int = 0
    repeated: int = 0  # of these, the rows that are in two parts
    wrong: Counter[str] = field(default_factory=Counter)  # by "stage/kind"
    examples: dict[str, str] = field(default_factory=dict)  # by "stage/kind"
    rows: int | None = None  # of the manifest, as the newest run counted them
    left: int | None = None  # of those
    labelled: int = 0  # more rows of the manifest, which people have labelled: run --except
    runs: list[dict[str, Any]] = field(default_factory=list)
    lease: LeaseHolder | None = None  # the newest; its `held` tells whether that run still works
    shards: list[ShardStatus] = field(default_factory=list)  # if the newest runs work on shards


def read_status(path: str, question: str | None = None) -> OutputStatus:
    reader = open_output_reader(path, question, shows_progress=True)
    fingerprint = reader.dataset.fingerprint
    newest_run, plan = reader.read_newest_plan()
    repeated = reader.count_repeated_rows()
    status = OutputStatus(
        path=reader.dataset.store.path,
        name=reader.job.get("name", ""),
        fingerprint=fingerprint,
        questions=len(reader.questions),
        model=reader.job.get("model", {}).get("weights", ""),
        others=[other for other in reader.questions if other != fingerprint],
        parts=len(reader.parts),
        answered=sum(run.answered for run in reader.commits.values()) - repeated,
        repeated=repeated,
        rows=plan.get("rows"),
        labelled=plan.get("labelled", 0),
        runs=reader.run_reports,
        lease=reader.lease_holder,
    )
    newest_commits = reader.commits.get(newest_run, RunCommits())
    status.left = max(0, plan["rows_left"] - newest_commits.newly_asked) if plan else None
    if "shard" in plan:
        status.shards = read_shards(reader, plan)
        status.left = sum(shard.left for shard in status.shards)
    for group in reader.group_failures(max_examples=1):
        status.wrong[group.name] = group.count
        status.examples[group.name] = group.examples[0].message
    return status


def to_json_dict(status: OutputStatus) -> dict[str, Any]:
    return {**asdict(status), "wrong": dict(status.wrong)}


def format_status(status: OutputStatus) -> Iterator[str]:
    """The lines for a terminal."""
    yield f"{status.path}: {status.name or 'no run has begun'}"
    others = ", ".join(status.others)
    others = f", the newest of {status.questions} (--question shows another: {others})" if others else ""
    yield f"question  {status.fingerprint}{others}  {status.model}".rstrip()
    yield f"answered  {format_count(status.answered, 'row')} in {format_count(status.parts, 'part')}"
    if status.repeated:
        why = "because a run that was taken over committed late; exports leave them out, the next run cleans up"
        yield f"twice     {format_count(status.repeated, 'row')}, {why}"
    yield f"failed    {format_count(status.wrong.total(), 'row')}"
    for reason, count in status.wrong.most_common():
        yield f"  {count:>8,}  {reason}: {status.examples[reason].strip().splitlines()[-1]}"
    if status.left is None:
        yield "left      unknown: no run has got far enough to count the manifest"
    else:
        yield f"left      {status.left:,} of {status.rows:,} rows, as the last run counted them"
    if status.labelled:
        yield f"labelled  {format_count(status.labelled, 'row')} more, which the last run did not ask (--except)"
    yield from format_shards(status.shards) if status.shards else [format_lease(status.lease)]
    if status.runs:
        yield "runs"
        yield from map(format_run, status.runs[:MAX_LISTED_RUNS])
    if any(shard.state in ("stopped", "not begun") for shard in status.shards):
        yield "next      give the run command with --shard for each shard that has stopped or not begun"
    elif status.left:
        yield "next      give the same run command again: it asks the rows that are left"
    if status.wrong:
        yield "retry     the run command with --retry-errors asks the failed rows again"
    yield f"look      {format_command('report', status.path)}"


def format_lease(holder: LeaseHolder | None) -> str:
    if holder is None or not holder.held:
        return "running   no"
    return f"running   run {holder.run} on {holder.host}, since {holder.since}; last seen {holder.seen}"


def format_run(report: Mapping[str, Any]) -> str:
    done_rows, seconds = report["answered"] + report["failed"], report["seconds"]
    had_nothing = report["status"] == "done" and not done_rows
    speed = f"{done_rows / seconds:.1f} rows/s" if done_rows and seconds else "nothing to do" if had_nothing else ""
    return (
        f"  {format_run_time(report['run'])}  {report['status']:<8} {report['answered']:>9,} answered "
        f"{report['failed']:>7,} failed  {format_run_duration(report):>8}  {speed:<14} {format_versions(report)}"
    ).rstrip()


def format_run_duration(report: Mapping[str, Any]) -> str:
    return "" if report["seconds"] is None else format_duration(report["seconds"])


def format_run_time(run_id: str) -> str:
    """
    >>> format_run_time("20261121T071958-ab12")
    '2026-11-21 07:19'
    """
    return f"{datetime.strptime(run_id[:15], '%Y%m%dT%H%M%S'):%Y-%m-%d %H:%M}"


def format_versions(report: Mapping[str, Any]) -> str:
    packages = ("ray", "torch", "transformers")
    return ", ".join(f"{name} {report['versions'][name]}" for name in packages if name in report.get("versions", {}))
