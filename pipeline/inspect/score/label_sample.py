"""Draws a sample of the answered rows and writes it as a table, in which people fill in the column `truth`.

Every row has the same chance. By confidence, the rows are sorted by it and cut into as many equal parts as rows are
wanted, and one is drawn from each: so the sample is like the whole, and `score` can treat it as a random one.
"""

from __future__ import annotations

import io
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.inspect.output_reader import open_output_reader
from pipeline.inspect.score.scored_rows import find_confidence, read_answered_rows
from pipeline.manifest.id_table import read_ids
from pipeline.output.local_files import write_named_file
from pipeline.truth.truth_table import TRUTH_COLUMN

Order = Literal["random", "confidence"]
SAMPLE_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "media", "answer", TRUTH_COLUMN)])


class SampleCount(NamedTuple):
    drawn: int
    answered: int


def write_sample(
    path: str,
    file: Path,
    *,
    row_count: int,
    order: Order = "random",
    seed: int = 0,
    question: str | None = None,
    id_table: str | None = None,
) -> SampleCount:
    """The ending of the file chooses CSV, JSONL or Parquet. Only rows of `id_table` are drawn, if there is one."""
    if file.suffix not in WRITERS:
        raise OutputError(f"--to {file}: the name ends in none of {', '.join(WRITERS)}")
    if file.exists():
        raise OutputError(f"--to {file} exists, and may hold labels; choose another name")
    reader = open_output_reader(path, question, shows_progress=True)
    allowed = None if id_table is None else read_ids(id_table, option="--from")
    confidences = {
        row["id"]: get_known_confidence(row)
        for row in read_answered_rows(reader, [])
        if allowed is None or row["id"] in allowed
    }
    ids = set(choose_ids(confidences, row_count, order, random.Random(seed)))
    rows = {row["id"]: describe_row(row) for row in read_answered_rows(reader, []) if row["id"] in ids}
    table = pa.Table.from_pylist([rows[row_id] for row_id in sorted(rows)], SAMPLE_SCHEMA)
    write_named_file(file, WRITERS[file.suffix](table))
    return SampleCount(len(rows), len(confidences))


def choose_ids(confidences: dict[str, float | None], row_count: int, order: Order, rng: random.Random) -> list[str]:
    """
    >>> choose_ids({"a": -3.0, "b": -0.1, "c": -2.0, "d": -0.2}, 2, "confidence", random.Random(1))
    ['c', 'd']
    """
    ids, count = sorted(confidences), min(row_count, len(confidences))
    if order == "random":
        return rng.sample(ids, count)
    if any(confidence is None for confidence in confidences.values()):
        raise OutputError("--by confidence: some answers have none; draw --by random")
    rng.shuffle(ids)  # equal confidences in no order
    ids.sort(key=lambda row_id: confidences[row_id] or 0.0)
    edges = [round(len(ids) * part / count) for part in range(count + 1)]
    return [ids[rng.randrange(start, end)] for start, end in pairwise(edges)]


def get_known_confidence(row: dict[str, Any]) -> float | None:
    return None if row["confidence"] is None and row["logprob"] is None else find_confidence(row)


def describe_row(row: dict[str, Any]) -> dict[str, str | None]:
    uris = [info["uri"] for info in row["media"] or () if info["uri"]]
    answer = row["text"] if row["answer"] is None else json.dumps(row["answer"], default=str, ensure_ascii=False)
    return {"id": row["id"], "media": " ".join(uris), "answer": answer, TRUTH_COLUMN: None}


def encode_csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.csv.write_csv(table, sink)
    return sink.getvalue()


def encode_jsonl(table: pa.Table) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist()).encode()


def encode_parquet_table(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


WRITERS = {".csv": encode_csv, ".jsonl": encode_jsonl, ".parquet": encode_parquet_table}
