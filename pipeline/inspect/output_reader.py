"""Reads the answers, failures and runs of one question from an output folder, without its manifest.

The newest run says which rows of which manifest count: its `plan.json` holds what it found before it started.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from pipeline.errors import OutputError
from pipeline.inspect.progress_bar import show_progress
from pipeline.output.dataset import Dataset, list_questions, list_runs, read_run_document
from pipeline.output.dead_letters import DeadLetter, find_failed_chunks, read_notes, read_unresolved_letters
from pipeline.output.failure_counts import FailingParts, FailureGroup, FailureGroups
from pipeline.output.part_index import read_footers
from pipeline.output.part_listing import PartListing, decode_name, split_part_name
from pipeline.output.store import OutputStore
from pipeline.output.thread_map import map_in_threads
from pipeline.run import retry_errors
from pipeline.run.claims import LeaseHolder, open_claims, read_newest_holder, read_shard_holders
from pipeline.run.orphans import count_repeated_rows

T = TypeVar("T")


@dataclass
class RunCommits:
    """What a run has committed, as its parts tell."""

    epoch: int = 0  # of its lease; earlier versions noted none
    answered: int = 0
    failed: int = 0
    newly_asked: int = 0  # rows that the run did not ask again
    parts: int = 0


@dataclass(frozen=True)
class OutputReader:
    dataset: Dataset
    questions: tuple[str, ...]  # fingerprints of all questions that have answers in the folder
    shows_progress: bool = False  # while parts are read
    failing_parts: FailingParts = field(default_factory=FailingParts)  # filled by `commits`

    def track(self, items: Iterable[T], label: str, total: int) -> Iterable[T]:
        """The items, with a bar on a terminal if this reader shows progress."""
        return show_progress(items, label, total) if self.shows_progress else items

    @cached_property
    def lease_holder(self) -> LeaseHolder | None:
        """The newest run by the order of leases: the clocks of different machines do not count."""
        return read_newest_holder(self.dataset)

    @cached_property
    def shard_holders(self) -> dict[int, LeaseHolder]:
        """The newest run on each shard, by its number; empty if the newest run worked on the whole."""
        return read_shard_holders(self.dataset, open_claims(self.dataset).find_newest())

    @cached_property
    def parts(self) -> PartListing:
        return self.dataset.list_parts()

    @cached_property
    def commits(self) -> dict[str, RunCommits]:
        """By run, from the footers of all parts, or what summaries say of them."""
        commits: dict[str, RunCommits] = defaultdict(RunCommits)
        footers = read_footers(self.dataset, self.parts)
        for part, footer in self.track(footers, "parts", len(self.parts)):
            self.failing_parts.add(part, footer.note)
            run = commits[footer.note.get("run", "")]
            run.epoch = footer.note.get("epoch", 0)
            run.answered += footer.row_count
            run.failed += footer.note["failed"]
            if split_part_name(part)[1] == 0:
                run.newly_asked += footer.row_count + footer.note["failed"]
            run.parts += 1
        return commits

    @cached_property
    def run_reports(self) -> list[dict[str, Any]]:
        """The reports of the runs of this question, newest first. A run without one is at work or was killed."""
        store = self.dataset.store
        reported = set(list_runs(store, "report"))

        def read_report(run_id: str) -> dict[str, Any]:
            return read_run_document(store, run_id, "report" if run_id in reported else "plan")

        run_ids = sorted(reported | set(list_runs(store, "plan")), reverse=True)
        reports = zip(run_ids, map_in_threads(read_report, run_ids), strict=True)
        return [self.complete_report(*each) for each in reports if each[1]["fingerprint"] == self.dataset.fingerprint]

    def complete_report(self, run_id: str, report: dict[str, Any]) -> dict[str, Any]:
        """A run that did not end by itself may have committed more than it knew: its parts tell."""
        if report.get("status") == "done":
            return report
        commits = self.commits.get(run_id, RunCommits())
        holders = self.shard_holders.values() or filter(None, [self.lease_holder])
        status = "running" if any(holder.held and holder.run == run_id for holder in holders) else "killed"
        counts = {name: max(getattr(commits, name), report.get(name, 0)) for name in ("answered", "failed")}
        return {"run": run_id, "status": status, "seconds": None, **report, **counts}

    @cached_property
    def may_repeat_rows(self) -> bool:
        """Whether an earlier run committed a part that the newest plan does not know, or knows to repeat rows."""
        _, plan = self.read_newest_plan()
        earlier_parts = sum(run.parts for run in self.commits.values() if run.epoch < plan.get("epoch", 0))
        return bool(plan.get("repeats_rows")) or earlier_parts > plan.get("parts", math.inf)

    def count_repeated_rows(self) -> int:
        return count_repeated_rows(self.parts, self.dataset) if self.may_repeat_rows else 0

    @cached_property
    def question(self) -> dict[str, Any]:
        return self.dataset.read_question()

    @cached_property
    def job(self) -> dict[str, Any]:
        """The resolved job of the newest run; empty if there is none."""
        store, holder = self.dataset.store, self.lease_holder
        return read_run_document(store, holder.run, "job") if holder and holder.run in list_runs(store, "job") else {}

    def read_newest_plan(self, *, full_manifest: bool = False) -> tuple[str, dict[str, Any]]:
        """The newest run that planned and its plan; `full_manifest` passes over runs with --limit."""
        store = self.dataset.store
        newest_run = self.lease_holder.run if self.lease_holder else ""
        for run_id in sorted(list_runs(store, "plan"), key=lambda run_id: run_id != newest_run):
            plan = read_run_document(store, run_id, "plan")
            if plan["fingerprint"] == self.dataset.fingerprint and ("gone" in plan or not full_manifest):
                return self.find_first_plan(plan["epoch"]) if "shard" in plan else (run_id, plan)
        return "", {}

    def find_first_plan(self, epoch: int) -> tuple[str, dict[str, Any]]:
        """Of the runs on shards in an epoch: it knows all that was left before any of them committed."""
        plans = {run_id: plan for run_id, plan in self.shard_plans.items() if plan["epoch"] == epoch}
        return min(plans.items(), key=lambda each: each[1]["parts"])

    @cached_property
    def shard_plans(self) -> dict[str, dict[str, Any]]:
        """Of all runs on shards, whose names tell."""
        run_ids = [run_id for run_id in list_runs(self.dataset.store, "plan") if "-s" in run_id]
        plans = map_in_threads(lambda run_id: read_run_document(self.dataset.store, run_id, "plan"), run_ids)
        each = zip(run_ids, plans, strict=True)
        return {run_id: plan for run_id, plan in each if plan["fingerprint"] == self.dataset.fingerprint}

    def read_failed_rows(self, *, may_repeat_rows: bool = False) -> Iterator[DeadLetter]:
        """The rows of the newest run's manifest that are still failed, each once.

        Where rows may be repeated, any part may answer one that failed.
        """
        _, plan = self.read_newest_plan(full_manifest=True)
        failed_chunks = find_failed_chunks(self.parts, self.dataset.list_dead_letters())
        for chunk_name in plan.get("gone", ()):
            failed_chunks.pop(chunk_name, None)
        later_parts = self.parts if may_repeat_rows else self.parts.select(plan.get("since", ()))
        notes = read_notes(self.dataset, self.parts, failed_chunks)
        scope = retry_errors.RetryScope(failed_chunks, (), later_parts, notes)
        seen_rows = set()
        for letter in retry_errors.read_failed_rows(scope, self.dataset):
            row_hash = hash((letter.id, letter.question))
            if row_hash not in seen_rows:
                seen_rows.add(row_hash)
                yield letter

    def group_failures(self, max_examples: int) -> list[FailureGroup]:
        """The rows that `read_failed_rows` gives, by reason. Only those are read that others may answer."""
        groups = FailureGroups(max_examples)
        _, plan = self.read_newest_plan()
        if self.may_repeat_rows or plan.get("since", True):
            groups.add_letters(self.read_failed_rows(may_repeat_rows=self.may_repeat_rows))
            return groups.list_groups()
        dead_letters = self.dataset.list_dead_letters()
        retried_chunks = self.parts.list_retried_chunks()
        removed_chunks = np.array([bytes.fromhex(name) for name in plan["gone"]], retried_chunks.dtype)
        other_chunks = np.unique(np.concatenate([retried_chunks, removed_chunks]))
        for counts, chunks in self.failing_parts.select_chunks(dead_letters, other_chunks):
            if not len(chunks) or not groups.add_counts(counts, len(chunks)):
                continue
            shown = {name: [name] for name in map(decode_name, chunks[:max_examples].tolist())}
            groups.add_letters(self.read_unresolved_letters(shown), are_counted=True)
        failed_chunks = find_failed_chunks(self.parts, dead_letters, retried_chunks)
        for name in plan["gone"]:
            failed_chunks.pop(name, None)
        groups.add_letters(self.read_unresolved_letters(failed_chunks))
        return groups.list_groups()

    def read_unresolved_letters(self, parts_by_chunk: Mapping[str, Sequence[str]]) -> Iterator[DeadLetter]:
        """The rows of these chunks that are still failed, without reading the footers that summaries have."""
        notes = read_notes(self.dataset, self.parts, parts_by_chunk)
        return read_unresolved_letters(self.dataset, parts_by_chunk, notes)


def open_output_reader(path: str, question: str | None = None, *, shows_progress: bool = False) -> OutputReader:
    """The named question, or the one asked last."""
    store = OutputStore(path)
    questions = tuple(sorted(list_questions(store)))
    if not questions:
        raise OutputError(
            f"{path}: there is no output of a run here; run the job first, or give the path that its output.path names"
        )
    if question is None:
        runs = list_runs(store, "plan")
        question = read_run_document(store, runs[0], "plan")["fingerprint"] if runs else questions[-1]
    elif question not in questions:
        raise OutputError(f"{path}: no question {question} was asked here; there is {', '.join(questions)}")
    return OutputReader(Dataset(store, question), questions, shows_progress)
