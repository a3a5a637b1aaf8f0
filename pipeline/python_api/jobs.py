"""Runs jobs from Python, and reads their outputs as Arrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import ExitCode
from pipeline.inspect.output_reader import OutputReader, open_output_reader
from pipeline.job import job_loader
from pipeline.job.spec import Job
from pipeline.run import driver

ERRORS_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "stage", "kind", "message")])


def load_job(path: str | Path, changes: Mapping[str, Any] | None = None, *, day: date | None = None) -> Job:
    """Read a job file. The changes are those of `--set`: `{"input.manifest": "./pictures"}`."""
    texts = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in (changes or {}).items()
    ]
    return job_loader.load_job(path, changes=texts, date=day.isoformat() if day else None)


@dataclass(frozen=True)
class Output:
    """What is in an output folder about one question."""

    reader: OutputReader
    exit_code: ExitCode | None = None  # of the run that this is the result of

    @property
    def path(self) -> str:
        return self.reader.dataset.store.path

    @property
    def question(self) -> str:
        """The fingerprint, which `compare` and `--question` take."""
        return self.reader.dataset.fingerprint

    def read_answers(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All answered rows. For more than memory holds, let DuckDB or pyarrow.dataset read `data/` in the folder."""
        dataset = self.reader.dataset
        names = list(columns) if columns is not None else None
        parts = [dataset.read_part(part, names) for part in self.reader.parts]
        return pa.concat_tables(parts, promote_options="default")  # earlier versions wrote fewer columns

    def read_errors(self) -> pa.Table:
        """The rows of the newest run's manifest that have no answer, and why."""
        letters = self.reader.read_failed_rows(may_repeat_rows=self.reader.may_repeat_rows)
        rows = [{name: getattr(letter, name) for name in ERRORS_SCHEMA.names} for letter in letters]
        return pa.Table.from_pylist(rows, schema=ERRORS_SCHEMA)


def run(
    job: Job,
    *,
    runner: str = "local",
    row_limit: int | None = None,
    retry_errors: str | None = None,
    allow_other_questions: bool = False,
    say: Callable[[str], None] | None = None,
) -> Output:
    """Run a job to its end, in this process or with `runner="ray"`; raises PipelineError where it cannot.

    A notebook shows the progress. `retry_errors` is "" for all failed rows, or their stages and kinds.
    """
    options = driver.RunOptions(
        runner=runner, row_limit=row_limit, retry_kind=retry_errors, allow_other_questions=allow_other_questions
    )
    exit_code = ExitCode(driver.run_job(job, options, say=say))
    return Output(open_output_reader(job.output.path), exit_code)


def read(path: str, question: str | None = None) -> Output:
    """An output folder: the question that was asked last, or the one that is named."""
    return Output(open_output_reader(path, question))
