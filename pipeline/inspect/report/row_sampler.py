"""Chooses the rows that the report shows, in one pass over all rows."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RowLocation = tuple[str, int]  # a part and the index of a row in it


@dataclass(frozen=True, slots=True)
class ReportOptions:
    random_rows: int = 24
    least_confident_rows: int = 12
    row_ids: tuple[str, ...] = ()


class RowSampler:
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
        if row["logprob"] is not None and self.options.least_confident_rows:
            entry = (-row["logprob"], location)
            if len(self.least_confident) < self.options.least_confident_rows:
                heapq.heappush(self.least_confident, entry)
            else:
                heapq.heappushpop(self.least_confident, entry)

    def list_reasons(self) -> dict[RowLocation, str]:
        """Why each row is shown. A row is shown once, for the first of its reasons."""
        doubtful = [location for _, location in sorted(self.least_confident, reverse=True)]
        reasons: dict[RowLocation, str] = dict.fromkeys(self.named_locations, "chosen")
        for reason, locations in (("doubtful", doubtful), ("random", sorted(self.random_locations))):
            for location in locations:
                reasons.setdefault(location, reason)
        return reasons
