"""Speeds that were measured with an engine on a card: the rows of `measured.json`, which `make gpu` writes.

A row of the table stands for a job on the same kind of card with the same engine, family and precision, if model and
rows are of about the same size.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.model.engines.torch.model_size import ModelSize

TABLE = Path(__file__).with_name("measured.json")
MAX_MODEL_RATIO = 1.5  # of parameters
MAX_TOKEN_RATIO = 4.0  # of a row's prompt, and of its answer


@dataclass(frozen=True, slots=True)
class MeasuredSpeed:
    """The field names are keys of the table. Tokens are those of a row, on average."""

    engine: str
    card: str  # as torch names it
    memory_gib: float
    family: str
    mix: str  # what the rows were like
    rows: int
    rows_at_once: int
    vision_tokens: float
    prompt_tokens: float  # vision tokens included
    output_tokens: float
    rows_per_s: float
    model: ModelSize
    versions: Mapping[str, str]
    date: str

    def is_on(self, gpu_name: str, memory_gib: float) -> bool:
        is_card = gpu_name.partition("-")[0] in re.split(r"\W+", self.card)
        return is_card and abs(self.memory_gib - memory_gib) < 0.1 * memory_gib


def parse_speed(row: Mapping[str, Any]) -> MeasuredSpeed:
    return MeasuredSpeed(**{**row, "model": ModelSize(**row["model"])})


def read_table(path: Path = TABLE) -> list[MeasuredSpeed]:
    return [parse_speed(row) for row in json.loads(path.read_text(encoding="utf-8"))]


def find_nearest(
    speeds: Sequence[MeasuredSpeed], model: ModelSize, *, prompt_tokens: float, output_tokens: float
) -> MeasuredSpeed | None:
    """The one whose rows are most like these, if any are like them at all."""

    def measure_distance(speed: MeasuredSpeed) -> float:
        ratios = (prompt_tokens / speed.prompt_tokens, output_tokens / speed.output_tokens)
        return max(abs(math.log(ratio)) for ratio in ratios)

    similar = [speed for speed in speeds if has_similar_size(speed.model, model)]
    nearest = min(similar, key=measure_distance, default=None) if prompt_tokens and output_tokens else None
    return nearest if nearest and measure_distance(nearest) <= math.log(MAX_TOKEN_RATIO) else None


def has_similar_size(left: ModelSize, right: ModelSize) -> bool:
    sizes, precisions = ((one.text_parameters, one.text_bytes / one.text_parameters) for one in (left, right))
    return all(max(pair) / min(pair) <= MAX_MODEL_RATIO for pair in zip(sizes, precisions, strict=True))
