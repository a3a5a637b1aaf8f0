"""Marks rows whose answers are vectors: is the nearest row one of those that belong with it?

Rows with the same truth, such as a product or a scene, belong together. A row that is alone with its truth is not
marked: it is there to be mistaken for others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import OutputError
from pipeline.inspect.neighbours.vector_search import find_nearest
from pipeline.inspect.neighbours.vector_table import read_vectors
from pipeline.inspect.output_reader import OutputReader
from pipeline.inspect.score.comparators import to_text
from pipeline.inspect.score.row_marks import RIGHT, RowMarks
from pipeline.truth.compared_fields import WHOLE_ANSWER

VECTOR_COLUMN = "embedding"
MEASURES = {RIGHT: 1, "one of 5 nearest": 5, "one of 10 nearest": 10}
EXPECTED_TRUTH = "give rows that belong together the same truth, such as the name of a product"
MAX_QUERIES = 20_000  # of more rows, so many are marked, from all over the ids


def mark_vectors(reader: OutputReader, truths: Mapping[str, Any]) -> dict[str, RowMarks]:
    """`truths` are those of rows that are answered, or failed: these found nothing."""
    labels = {row_id: to_text(truth) for row_id, truth in truths.items()}
    sizes = Counter(labels.values())
    marked = choose_queries([row_id for row_id, label in sorted(labels.items()) if sizes[label] > 1])
    if not marked:
        raise OutputError(
            "the answers are vectors, and no two rows have the same truth: say which rows belong together"
        )
    nearest = find_nearest_ids(reader, labels, marked, max(MEASURES.values()))
    marks = {}
    for row_id in marked:
        is_hit = [labels[other] == labels[row_id] for other in nearest.get(row_id, ())]
        marks[row_id] = RowMarks()
        for measure, count in MEASURES.items():
            marks[row_id].add(WHOLE_ANSWER, measure, (float(any(is_hit[:count])), 1.0))
    return marks


def choose_queries(ids: Sequence[str]) -> list[str]:
    places = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), MAX_QUERIES)).astype(int))
    return [ids[place] for place in places]


def find_nearest_ids(
    reader: OutputReader, among: Mapping[str, Any], queries: Sequence[str], count: int
) -> dict[str, list[str]]:
    """The nearest rows of each query that has a vector, among some of the rows."""
    table = read_vectors(reader, VECTOR_COLUMN)
    places = [place for place, row_id in enumerate(table.ids) if row_id in among]
    ids = [table.ids[place] for place in places]
    numbers = {row_id: number for number, row_id in enumerate(ids)}
    known = [row_id for row_id in queries if row_id in numbers]
    found = find_nearest(table.vectors[places], [numbers[row_id] for row_id in known], count)
    return {row_id: [ids[each.position] for each in nearest] for row_id, nearest in zip(known, found, strict=True)}
