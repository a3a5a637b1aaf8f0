"""Reads the vectors of an output: a column of lists that all have the same number of floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import OutputError
from pipeline.inspect.output_reader import OutputReader
from pipeline.output.thread_map import map_in_threads


@dataclass(frozen=True)
class VectorTable:
    ids: list[str]
    vectors: NDArray[np.float32]  # of length 1, one for each id
    pixels: NDArray[np.int64]  # of the row's media
    without_vector: int  # rows whose vector is null, zero or no number


def read_vectors(reader: OutputReader, column: str | None) -> VectorTable:
    """The newest vector of each id. Without a name, the only column of vectors."""
    parts = list(reader.parts)
    if not parts:
        raise OutputError(f"{reader.dataset.store.path}: no row is answered yet")
    column = find_vector_column(reader.dataset.read_part(parts[0]).schema, column)
    row_count = sum(run.answered for run in reader.commits.values())
    positions: dict[str, int] = {}
    runs: list[str] = []
    vectors: NDArray[np.float32] | None = None
    pixels = np.zeros(row_count, np.int64)
    without_vector = 0
    tables = map_in_threads(lambda part: reader.dataset.read_part(part, ["id", "run", "media", column]), parts)
    for table in tables:
        rows, part_vectors = take_unit_vectors(table, column)
        without_vector += table.num_rows - len(part_vectors)
        if vectors is None and len(part_vectors):
            vectors = np.empty((row_count, part_vectors.shape[1]), np.float32)
        for row, vector in zip(rows.select(["id", "run", "media"]).to_pylist(), part_vectors, strict=True):
            position = positions.setdefault(row["id"], len(positions))
            if position == len(runs):
                runs.append("")
            if vectors is not None and runs[position] <= row["run"]:
                if len(vector) != vectors.shape[1]:
                    raise OutputError(f"column {column} has vectors of {vectors.shape[1]} and of {len(vector)} numbers")
                runs[position], vectors[position] = row["run"], vector
                pixels[position] = sum((info["width"] or 0) * (info["height"] or 0) for info in row["media"] or ())
    if vectors is None:
        raise OutputError(f"column {column} holds no vector yet")
    return VectorTable([*positions], vectors[: len(runs)], pixels[: len(runs)], without_vector)


def find_vector_column(schema: pa.Schema, name: str | None) -> str:
    found = [field.name for field in schema if is_vector_type(field.type)]
    known = f"columns of vectors: {', '.join(found)}" if found else "no column of this output holds vectors"
    if name is not None and name not in found:
        raise OutputError(f"--column {name} is no column of vectors; {known}")
    if name is None and len(found) != 1:
        raise OutputError(f"{known}; name one with --column" if found else known)
    return name or found[0]


def is_vector_type(data_type: pa.DataType) -> bool:
    is_list = pa.types.is_fixed_size_list(data_type) or pa.types.is_list(data_type)
    return bool(is_list and pa.types.is_floating(data_type.value_type))


def take_unit_vectors(table: pa.Table, column: str) -> tuple[pa.Table, NDArray[np.float32]]:
    """The rows that have a vector, and their vectors divided by their lengths."""
    table = table.filter(table[column].is_valid()).combine_chunks()
    if not table.num_rows:
        return table, np.empty((0, 0), np.float32)
    lengths = set(pa.compute.list_value_length(table[column]).to_pylist())
    if len(lengths) > 1:
        raise OutputError(f"column {column} has vectors of {min(lengths)} and of {max(lengths)} numbers")
    values = pa.concat_arrays([chunk.flatten() for chunk in table[column].chunks])
    vectors = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(table.num_rows, -1)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    return table.filter(pa.array(usable)), vectors[usable] / norms[usable]
