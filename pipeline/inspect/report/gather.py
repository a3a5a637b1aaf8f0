"""An output folder -> what its report tells: figures over all answers, and the few rows that are shown.

Parts are read one after another, first a few columns of each, then the chosen rows whole; what is held does not grow
with the output. Of very many parts some are read, evenly spread, and the report says so.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.inspect.plan.survey import pick_evenly
from pipeline.output.dataset import Dataset
from pipeline.output.dead_letters import DeadLetter
from pipeline.output.thread_map import map_in_threads

MAX_PARTS_READ = 2000
LATENCY_BINS_PER_DECADE = 20  # of a latency, from one power of ten to the next
EXAMPLES_PER_GROUP = 5  # of one kind of error
STATISTICS_COLUMNS = ["id", "tokens", "logprob", "latency_s", "finish", "flags", "violations"]
RowLocation = tuple[str, int]  # a part and the row in it


@dataclass
class AnswerStatistics:
    """What all the rows that were read add up to."""

    parts: int = 0
    parts_read: int = 0
    rows: int = 0
    vision_tokens: Counter[int] = field(default_factory=Counter)
    output_tokens: Counter[int] = field(default_factory=Counter)
    confidence_percents: Counter[int] = field(default_factory=Counter)  # percent
    latency_bins: Counter[int] = field(
        default_factory=Counter
    )  # by the twentieth of a power of ten of its milliseconds
    finish_reasons: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    rows_with_violations: int = 0  # rows with some

    def add_row(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        self.vision_tokens[row["tokens"]["vision"]] += 1
        self.output_tokens[row["tokens"]["output"]] += 1
        self.finish_reasons[row["finish"]] += 1
        self.flags.update(row["flags"] or ())
        self.rows_with_violations += bool(row["violations"])
        if row["logprob"] is not None:
            self.confidence_percents[to_percent(row["logprob"])] += 1
        if row.get("latency_s") is not None:  # parts of earlier versions have none
            self.latency_bins[to_latency_bin(row["latency_s"])] += 1


def to_percent(logprob: float) -> int:
    """The mean probability of a token, in percent.

    >>> confidence(0.0), confidence(-0.6931)
    (100, 50)
    """
    return round(100 * math.exp(logprob))


def to_latency_bin(seconds: float) -> int:
    """Latencies lie orders of magnitude apart: equal steps of their logarithm keep both ends to be seen.

    >>> magnitude(0.001), magnitude(1.0), magnitude(2.0)
    (0, 60, 66)
    """
    return max(0, math.floor(LATENCY_BINS_PER_DECADE * math.log10(max(seconds, 1e-3) * 1000)))


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Which rows are shown."""

    random_rows: int = 24
    least_confident_rows: int = 12
    row_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SampledRow:
    reason: str  # chosen, doubtful or random
    row: Mapping[str, Any]


def gather_answers(dataset: Dataset, options: ReportOptions) -> tuple[AnswerStatistics, list[SampledRow]]:
    names = sorted(dataset.list_parts())
    read = names if options.row_ids else [names[at] for at in pick_evenly(len(names), MAX_PARTS_READ)]
    figures = AnswerStatistics(parts=len(names), parts_read=len(read))
    choice = RowSampler(options)
    for name, rows in _read_statistics_rows(dataset, read):
        for at, row in enumerate(rows):
            figures.add_row(row)
            choice.offer_row((name, at), row)
    return figures, list(_read_sampled_rows(dataset, choice.list_reasons()))


class RowSampler:
    """Rows drawn as they pass: some at random, the least confident, those with an id that was asked for."""

    def __init__(self, options: ReportOptions):
        self.options, self.seen_rows, self.rng = options, 0, random.Random(0)
        self.random_locations: list[RowLocation] = []
        self.least_confident: list[tuple[float, RowLocation]] = []  # a heap with the most confident on top
        self.named_locations: list[RowLocation] = []

    def offer_row(self, location: RowLocation, row: Mapping[str, Any]) -> None:
        self.seen_rows += 1
        if row["id"] in self.options.row_ids:
            self.named_locations.append(location)
        if len(self.random_locations) < self.options.random_rows:
            self.random_locations.append(location)
        elif (at := self.rng.randrange(self.seen_rows)) < self.options.random_rows:
            self.random_locations[at] = location
        if row["logprob"] is not None and self.options.least_confident_rows:
            entry = (-row["logprob"], location)
            if len(self.least_confident) < self.options.least_confident_rows:
                heapq.heappush(self.least_confident, entry)
            else:
                heapq.heappushpop(self.least_confident, entry)

    def list_reasons(self) -> dict[RowLocation, str]:
        """Why each is shown; a row is shown once."""
        doubtful = [place for _, place in sorted(self.least_confident, reverse=True)]
        reasons = [("chosen", self.named_locations), ("doubtful", doubtful), ("random", sorted(self.random_locations))]
        out: dict[RowLocation, str] = {}
        for why, places in reasons:
            for place in places:
                out.setdefault(place, why)
        return out


def _read_statistics_rows(dataset: Dataset, parts: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    tables = map_in_threads(lambda part: dataset.read_part(part, STATISTICS_COLUMNS).to_pylist(), parts)
    return zip(parts, tables, strict=True)


def _read_sampled_rows(dataset: Dataset, reasons: Mapping[RowLocation, str]) -> Iterator[SampledRow]:
    by_part: dict[str, list[int]] = {}
    for name, at in reasons:
        by_part.setdefault(name, []).append(at)
    rows: dict[RowLocation, dict[str, Any]] = {}
    for name, numbers in by_part.items():
        table = dataset.read_part(name)
        rows |= {(name, at): table.slice(at, 1).to_pylist()[0] for at in numbers}
    return (SampledRow(why, rows[place]) for place, why in reasons.items())


@dataclass
class FailureGroup:
    """The rows that failed for one reason."""

    name: str  # stage/kind
    count: int = 0
    examples: list[DeadLetter] = field(default_factory=list)


def group_failures(letters: Iterable[DeadLetter]) -> list[FailureGroup]:
    """Letters by reason, the commonest first; of each a few examples."""
    found: dict[str, FailureGroup] = {}
    for letter in letters:
        name = f"{letter.stage}/{letter.kind}"
        group = found.setdefault(name, FailureGroup(name))
        group.count += 1
        if len(group.examples) < EXAMPLES_PER_GROUP:
            group.examples.append(letter)
    return sorted(found.values(), key=lambda group: -group.count)
