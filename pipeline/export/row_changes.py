"""What is done to rows before a format gets them: calibrated confidences, people's corrections, and a filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.export.remarks import Remarks
from pipeline.export.row_filter import RowFilter
from pipeline.output.answer.confidence_maps import calibrate_column, hash_confidence_maps
from pipeline.truth.job_truth import hash_truth
from pipeline.truth.truth_index import TruthIndex
from pipeline.truth.typed_truth import type_truth
from pipeline.types import ConfidenceMaps

CORRECTED_FLAG = "corrected"


@dataclass(frozen=True)
class RowChanges:
    maps: ConfidenceMaps
    truth: TruthIndex | None = None
    row_filter: RowFilter | None = None

    def identify(self) -> dict[str, str]:
        """The contents of scores and truths. The filter is an option."""
        calibration = {"calibration": hash_confidence_maps(self.maps)} if self.maps else {}
        return calibration | ({"truth": hash_truth(self.truth)} if self.truth else {})

    def apply(self, table: pa.Table, remarks: Remarks) -> pa.Table:
        table = calibrate_column(table, self.maps) if self.maps else table
        table = correct_rows(table, self.truth, remarks) if self.truth else table
        return self.row_filter.select_rows(table) if self.row_filter else table


def correct_rows(table: pa.Table, truth: TruthIndex, remarks: Remarks) -> pa.Table:
    """Where people gave fields of an answer, these replace the model's. Such a row has no confidence, and a flag."""
    names = [name for name in ("id", "media", "answer", "text", "confidence", "flags") if name in table.schema.names]
    rows = table.select(names).to_pylist()
    answer_field = table.schema.field("answer" if "answer" in names else "text")
    for row in rows:
        true_answer = truth.find(row)
        if true_answer is not None:
            row[answer_field.name] = merge_answers(row[answer_field.name], true_answer, answer_field, row["id"])
            remarks.add("rows that people corrected", f"row {row['id']}")
            row["flags"] = [*(row["flags"] or ()), CORRECTED_FLAG]
            row |= {"confidence": None} if "confidence" in names else {}
    for name in {answer_field.name, "confidence", "flags"} & set(names):
        field = table.schema.field(name)
        values = pa.array([row[name] for row in rows], field.type)
        table = table.set_column(table.schema.get_field_index(name), field, values)
    return table


def merge_answers(answer: Any, true_answer: Any, field: pa.Field, row_id: str) -> Any:
    if not pa.types.is_struct(field.type) or not isinstance(true_answer, Mapping):
        return type_truth(true_answer, field, row_id)
    given = {
        part.name: type_truth(true_answer[part.name], part, row_id) for part in field.type if part.name in true_answer
    }
    return {**(answer or {}), **given}
