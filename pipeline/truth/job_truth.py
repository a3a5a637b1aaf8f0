"""Opens truths for a job: people's answers to its rows, which an export prefers and which a run does not ask again."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from pipeline.context import RunContext, get_base_folder
from pipeline.errors import OutputError
from pipeline.manifest.files import detect_source_kind
from pipeline.manifest.id_table import read_column_names, read_ids
from pipeline.manifest.row_keys import hash_row_keys
from pipeline.schema.schema_loader import load_annotated_schema
from pipeline.truth.compared_fields import ComparedField, build_compared_fields
from pipeline.truth.truth_index import TruthIndex, open_truth
from pipeline.truth.truth_table import holds_truths


def build_answer_shape(context: RunContext) -> ComparedField:
    """With what the schema's author says about comparing, which tells the class of a box."""
    spec = context.job.answer.schema_
    if spec:
        return build_compared_fields(load_annotated_schema(spec, base_folder=get_base_folder()))
    return build_compared_fields(context.schema.json_schema if context.schema else None)


def open_job_truth(where: str, context: RunContext) -> TruthIndex:
    return open_truth(where, "id", build_answer_shape(context), [])


def hash_truth(truth: TruthIndex) -> str:
    """Of all that people said, in the order of the file."""
    digest = hashlib.blake2b(digest_size=12)
    for answer in truth.answers:
        digest.update(json.dumps(answer, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def read_labelled_ids(where: str, context: RunContext) -> NDArray[np.uint64]:
    """Hashes of the ids of rows that people have labelled, as rows of a manifest are hashed.

    A table in which no column says an answer, such as that of near duplicates, names all its rows.
    """
    if detect_source_kind(where) is None:
        raise OutputError(
            f"--except {where}: give a table with a column `id`, as `python -m pipeline truth` makes it of {where}"
        )
    shape = build_answer_shape(context)
    if holds_truths(read_column_names(where, option="--except"), shape):
        ids = [(names[0], "") for names, *_ in open_truth(where, "id", shape, [], "table").answers]
    else:
        ids = [(row_id, "") for row_id in read_ids(where, option="--except")]
    return hash_row_keys(ids)[:, 0] if ids else np.empty(0, np.uint64)
