"""Asks a model from Python: about media, or about the rows of an Arrow table, as the workers of a run do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa

from pipeline.answer import Answerer
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.chunks import split_file
from pipeline.manifest.files import ManifestFile
from pipeline.manifest.sources.base import Source, TableSource
from pipeline.output.arrow_tables import build_data_schema, build_table, to_answered_record
from pipeline.prepare import Preparer
from pipeline.run import preflight
from pipeline.types import Outcome, Row

if TYPE_CHECKING:
    from PIL import Image

    Medium = str | Path | bytes | Image.Image

ERROR_COLUMN = "error"
ERROR_TYPE = pa.struct([(name, pa.string()) for name in ("stage", "kind", "message")])
MEDIA_TYPE = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
ANSWER_COLUMNS = ("text", "answer", "confidence", "probabilities", "finish", "tokens", "flags", "violations")


class MemorySource(TableSource):
    file_endings = ("table",)

    def __init__(self, table: pa.Table):
        self.rows = table

    @property
    def table(self) -> pa.Table:
        return self.rows


@dataclass(frozen=True)
class MemoryFile(ManifestFile):
    """A table in place of a manifest file. Relative paths in it start at the current folder."""

    table: pa.Table = field(kw_only=True, compare=False)

    @classmethod
    def of(cls, table: pa.Table) -> MemoryFile:
        """Two tables are two files, by their names."""
        return cls(f"file://{Path.cwd()}/{uuid4()}.table", "memory", table=table)

    @property
    def source_class(self) -> type[Source]:
        return MemorySource

    def open_source(self) -> Source:
        return MemorySource(self.table)


class Model:
    """A model that is loaded, with all that a job says about its questions and answers.

    The job's manifest, output and kept columns do not matter here. Local paths in a table are read below `input.roots`,
    by default below the folder in which the model was opened.
    """

    def __init__(self, job: Job):
        names = [name for name in (*job.input.media, job.input.id) if name]
        file = MemoryFile.of(pa.table({name: pa.array([], pa.string()) for name in names}))
        job = job.model_copy(update={"input": job.input.model_copy(update={"keep": ()})})
        self.context = preflight.build_run_context(job, [file])
        if problems := preflight.find_job_problems(self.context, []):
            raise JobError("\n".join(problems))
        self.schema = pa.schema([field for field in build_data_schema(self.context) if field.name in ANSWER_COLUMNS])
        self.preparer, self.answerer = Preparer(self.context), Answerer(self.context)

    @classmethod
    def open(
        cls, weights: str, *, prompt: str | None = None, schema: str | None = None, **sections: Mapping[str, Any]
    ) -> Model:
        """A model for `ask`. Further sections are those of a job, such as `answer={"max_new_tokens": 64}`."""
        job: dict[str, dict[str, Any]] = {
            "input": {"manifest": ".", "media": "media", "id": "id"},
            "model": {"weights": weights},
            "prompt": {"user": prompt},
            "answer": {"schema": schema},
            "output": {"path": "out"},
        }
        names = dict.fromkeys([*job, *sections])
        values = {name: {**job.get(name, {}), **sections.get(name, {})} for name in names}
        return cls(Job.model_validate({"name": "python", **values}))

    def ask(self, media: Sequence[Medium | Sequence[Medium]]) -> list[dict[str, Any]]:
        """One answer for each entry: a path, a URI, bytes, a PIL image, or several of these for one question.

        An entry without an answer has an `error`.
        """
        entries = [entry if isinstance(entry, list | tuple) else [entry] for entry in media]
        cells = [[wrap_medium(part) for part in entry] for entry in entries]
        ids = pa.array([str(number) for number in range(len(cells))], pa.string())
        table = pa.table({"id": ids, "media": pa.array(cells, MEDIA_TYPE)})
        return list(self.answer_table(table).select([*self.schema.names, ERROR_COLUMN]).to_pylist())

    def answer_table(self, table: pa.Table) -> pa.Table:
        """The table with a column for each part of the answers, and `error` where a row has none."""
        if taken := [name for name in (*self.schema.names, ERROR_COLUMN) if name in table.column_names]:
            raise JobError(f"the column {taken[0]} would be overwritten; rename it")
        job = self.context.job
        one_chunk = job.model_copy(
            update={"output": job.output.model_copy(update={"chunk_rows": max(1, table.num_rows)})}
        )
        outcomes: list[Outcome] = []
        for chunk, _ in split_file(one_chunk, MemoryFile.of(table), self.context.schema_prompt):
            outcomes += self.answerer.answer_pieces(self.preparer.prepare_pieces(chunk))
        records = [self.to_record(outcome) for outcome in outcomes]
        answers = build_table(records, self.schema.append(pa.field(ERROR_COLUMN, ERROR_TYPE)))
        for name in answers.column_names:
            table = table.append_column(answers.schema.field(name), answers[name])
        return table

    def to_record(self, outcome: Outcome) -> dict[str, Any]:
        item, row = outcome
        if isinstance(row, Row):
            return {**to_answered_record(item, row), ERROR_COLUMN: None}
        error = {name: getattr(row, name) for name in ERROR_TYPE.names}
        return {**dict.fromkeys(self.schema.names), "text": row.text, ERROR_COLUMN: error}

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.preparer.close()
        self.answerer.close()


class AnswerTable:
    """`Model.answer_table` as a class for `ray.data.Dataset.map_batches`, with batch_format="pyarrow"."""

    def __init__(self, job: Job):
        self.model = Model(job)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.model.answer_table(table)


def wrap_medium(medium: Any) -> dict[str, Any]:
    """The cell of a path, a URI, bytes, or a PIL image."""
    if isinstance(medium, bytes):
        return {"bytes": medium}
    if isinstance(medium, str) and "://" in medium:
        return {"path": medium}
    if isinstance(medium, str | Path):
        return {"bytes": Path(medium).read_bytes()}
    buffer = BytesIO()
    medium.save(buffer, "PNG")
    return {"bytes": buffer.getvalue()}
