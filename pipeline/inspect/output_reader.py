"""Reads the answers, failures and runs of one question from an output folder, without its manifest.

The newest run says which rows of which manifest count: its `plan.json` holds what it found before it started.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.errors import OutputError
from pipeline.output.dataset import Dataset, PartFooter, list_questions, list_runs, read_run_document
from pipeline.output.dead_letters import DeadLetter, find_failed_chunks
from pipeline.output.store import OutputStore
from pipeline.output.thread_map import map_in_threads
from pipeline.run import retry_errors
from pipeline.run.lease import LeaseHolder, read_newest_holder


@dataclass(frozen=True)
class OutputReader:
    dataset: Dataset
    questions: tuple[str, ...]  # fingerprints of all questions that have answers in the folder

    @cached_property
    def lease_holder(self) -> LeaseHolder | None:
        """The newest run by the order of leases: the clocks of different machines do not count."""
        return read_newest_holder(self.dataset)

    @cached_property
    def run_reports(self) -> list[dict[str, Any]]:
        """The reports of the runs of this question, newest first."""
        store = self.dataset.store
        reports = map_in_threads(lambda run_id: read_run_document(store, run_id, "report"), list_runs(store, "report"))
        return [report for report in reports if report["fingerprint"] == self.dataset.fingerprint]

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
                return run_id, plan
        return "", {}

    def read_footers(self) -> Iterator[tuple[str, PartFooter]]:
        parts = sorted(self.dataset.list_parts())
        return zip(parts, map_in_threads(self.dataset.read_footer, parts), strict=True)

    def read_failed_rows(self) -> Iterator[DeadLetter]:
        """The rows of the newest run's manifest that are still failed, each once."""
        _, plan = self.read_newest_plan(full_manifest=True)
        failed_chunks = find_failed_chunks(self.dataset.list_parts(), self.dataset.list_dead_letters())
        for chunk_name in plan.get("gone", ()):
            failed_chunks.pop(chunk_name, None)
        scope = retry_errors.RetryScope(failed_chunks, (), plan.get("since", ()))
        seen_rows = set()
        for letter in retry_errors.read_failed_rows(scope, self.dataset):
            row_hash = hash((letter.id, letter.question))
            if row_hash not in seen_rows:
                seen_rows.add(row_hash)
                yield letter


def open_output_reader(path: str, question: str | None = None) -> OutputReader:
    """The named question, or the one asked last."""
    store = OutputStore(path)
    questions = tuple(sorted(list_questions(store)))
    if not questions:
        raise OutputError(f"{path}: there is no output of a run here; give the path that output.path of a job names")
    if question is None:
        runs = list_runs(store, "plan")
        question = read_run_document(store, runs[0], "plan")["fingerprint"] if runs else questions[-1]
    elif question not in questions:
        raise OutputError(f"{path}: no question {question} was asked here; there is {', '.join(questions)}")
    return OutputReader(Dataset(store, question), questions)
