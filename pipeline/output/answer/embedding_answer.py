"""Turns the vector of a reply into the column of a job with `answer.embedding`: cut, of length 1, of one type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import AnswerError
from pipeline.job.embedding_section import EmbeddingSection


def build_embedding_field(name: str, embedding: EmbeddingSection, width: int) -> pa.Field:
    value_type = pa.float32() if embedding.dtype == "float32" else pa.float16()
    return pa.field(name, pa.list_(value_type, width))


def read_embedding(
    vector: NDArray[np.float32] | None, embedding: EmbeddingSection, width: int
) -> NDArray[np.floating[Any]]:
    if vector is None or len(vector) < width:
        size = 0 if vector is None else len(vector)
        raise AnswerError("vector", f"the vector has {size} numbers, and the column `embedding` {width}")
    cut = np.asarray(vector[:width], np.float32)
    norm = np.linalg.norm(cut)
    if not np.isfinite(norm) or (embedding.normalize and not norm):
        raise AnswerError("vector", "the vector is zero, or holds what is no number: try another model.dtype")
    finished = cut / norm if embedding.normalize else cut
    with np.errstate(over="ignore"):
        typed = finished.astype(embedding.dtype)
    if not np.isfinite(typed).all():
        raise AnswerError("vector", "the vector is too large for float16: set normalize: true or dtype: float32")
    return typed
