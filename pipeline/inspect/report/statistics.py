"""Reads an output for the report: figures over all answers, a few rows to show, and the failures by reason.

Parts are read one window at a time: a few columns of each part for the figures, then the chosen rows. Memory does not
grow with the output. Of very many parts an even sample is read, and the report says so.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.inspect.figures import pick_evenly
from pipeline.inspect.score.scored_rows import find_confidence
from pipeline.output.dataset import Dataset
from pipeline.output.thread_map import map_in_threads

MAX_PARTS_READ = 2000
LATENCY_BINS_PER_DECADE = 20
STATISTICS_COLUMNS = ["id", "tokens", "answer", "confidence", "logprob", "latency_s", "finish", "flags", "violations"]

RowLocation = tuple[str, int]  # a part and the index of a row in it


@dataclass(frozen=True, slots=True)
class ReportOptions:
    random_rows: int = 24
    least_confident_rows: int = 12
    row_ids: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()  # where media may be read from, as in a job's section `input`
    hosts: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()  # beside that of the output
    truth: str | None = None  # a kept column or a file, as with `score`
    truth_id_column: str = "id"
    schema_spec: str | None = None
    against: str | None = None  # another question, whose answers are shown beside these


@dataclass
class AnswerStatistics:
    parts: int = 0
    parts_read: int = 0
    rows: int = 0
    vision_tokens: Counter[int] = field(default_factory=Counter)  # tokens of a row -> rows
    output_tokens: Counter[int] = field(default_factory=Counter)
    confidence_percents: Counter[int] = field(default_factory=Counter)
    latency_bins: Counter[int] = field(default_factory=Counter)  # by `to_latency_bin`
    finish_reasons: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    rows_with_violations: int = 0

    def add_row(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        self.vision_tokens[row["tokens"]["vision"]] += 1
        self.output_tokens[row["tokens"]["output"]] += 1
        self.finish_reasons[row["finish"]] += 1
        self.flags.update(row["flags"] or ())
        self.rows_with_violations += bool(row["violations"])
        if row["logprob"] is not None:
            self.confidence_percents[to_percent(row["logprob"])] += 1
        if row.get("latency_s") is not None:  # earlier versions wrote no such column
            self.latency_bins[to_latency_bin(row["latency_s"])] += 1


def to_percent(logprob: float) -> int:
    """The mean probability of a token, in percent.

    >>> to_percent(0.0), to_percent(-0.6931)
    (100, 50)
    """
    return round(100 * math.exp(logprob))


def to_latency_bin(seconds: float) -> int:
    """The number of a bin. Bins are equal steps of the logarithm, because latencies differ by orders of magnitude.

    >>> to_latency_bin(0.001), to_latency_bin(1.0), to_latency_bin(2.0)
    (0, 60, 66)
    """
    return max(0, math.floor(LATENCY_BINS_PER_DECADE * math.log10(max(seconds, 1e-3) * 1000)))


def find_known_confidence(row: Mapping[str, Any]) -> float | None:
    """Of the least sure value; earlier versions only knew the mean of the tokens."""
    if row.get("confidence") is None and row["logprob"] is None:
        return None
    return find_confidence({"confidence": None, **row})


class RowSampler:
    """Chooses the rows to show, in one pass over all rows."""

    def __init__(self, options: ReportOptions):
        self.options, self.seen_rows, self.rng = options, 0, random.Random(0)
        self.random_locations: list[RowLocation] = []  # a reservoir sample
        self.least_confident: list[tuple[float, RowLocation]] = []  # a heap whose top is the most confident
        self.named_locations: list[RowLocation] = []

    def offer_row(self, location: RowLocation, row: Mapping[str, Any]) -> None:
        self.seen_rows += 1
        if row["id"] in self.options.row_ids:
            self.named_locations.append(location)
        if len(self.random_locations) < self.options.random_rows:
            self.random_locations.append(location)
        elif (index := self.rng.randrange(self.seen_rows)) < self.options.random_rows:
            self.random_locations[index] = location
        confidence = find_known_confidence(row)
        if confidence is not None and self.options.least_confident_rows:
            entry = (-confidence, location)
            if len(self.least_confident) < self.options.least_confident_rows:
                heapq.heappush(self.least_confident, entry)
            else:
                heapq.heappushpop(self.least_confident, entry)

    def list_reasons(self) -> dict[RowLocation, str]:
        """Why each row is shown: the first of its reasons."""
        doubtful = [location for _, location in sorted(self.least_confident, reverse=True)]
        reasons: dict[RowLocation, str] = dict.fromkeys(self.named_locations, "chosen")
        for reason, locations in (("doubtful", doubtful), ("random", sorted(self.random_locations))):
            for location in locations:
                reasons.setdefault(location, reason)
        return reasons


@dataclass(frozen=True, slots=True)
class SampledRow:
    reason: str  # chosen, doubtful or random
    row: Mapping[str, Any]


def read_statistics(dataset: Dataset, options: ReportOptions) -> tuple[AnswerStatistics, list[SampledRow]]:
    parts = dataset.list_parts()
    read_parts = parts if options.row_ids else parts.select_at(pick_evenly(len(parts), MAX_PARTS_READ))
    statistics = AnswerStatistics(parts=len(parts), parts_read=len(read_parts))
    sampler = RowSampler(options)
    rows_by_part = map_in_threads(lambda part: dataset.read_part(part, STATISTICS_COLUMNS).to_pylist(), read_parts)
    for part, rows in zip(read_parts, rows_by_part, strict=True):
        for index, row in enumerate(rows):
            statistics.add_row(row)
            sampler.offer_row((part, index), row)
    return statistics, read_sampled_rows(dataset, sampler.list_reasons())


def read_sampled_rows(dataset: Dataset, reasons: Mapping[RowLocation, str]) -> list[SampledRow]:
    indices_by_part: dict[str, list[int]] = {}
    for part, index in reasons:
        indices_by_part.setdefault(part, []).append(index)
    rows: dict[RowLocation, dict[str, Any]] = {}
    for part, indices in indices_by_part.items():
        table = dataset.read_part(part)
        rows |= {(part, index): table.slice(index, 1).to_pylist(maps_as_pydicts="lossy")[0] for index in indices}
    return [SampledRow(reason, rows[location]) for location, reason in reasons.items()]
