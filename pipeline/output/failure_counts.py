"""Counts the rows that failed by reason, without reading more of them than a few examples.

Commits note how many rows of a chunk failed for which reasons. That counts until the chunk's rows are asked again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.hash_arrays import are_among
from pipeline.output.dead_letters import DeadLetter
from pipeline.output.part_listing import NAME_FIELDS, DeadLetterListing, encode_name

ReasonCounts = tuple[tuple[str, int], ...]  # rows by "stage/kind"


class FailingParts:
    """The parts with dead letters, by what their commits noted: 14 bytes each."""

    def __init__(self) -> None:
        self.names: dict[ReasonCounts, bytearray] = defaultdict(bytearray)

    def add(self, part: str, note: Mapping[str, Any]) -> None:
        if note["errors"]:
            self.names[tuple(note["kinds"].items())] += encode_name(part)

    def select_chunks(
        self, dead_letters: DeadLetterListing, other_chunks: NDArray[np.bytes_]
    ) -> Iterator[tuple[ReasonCounts, NDArray[np.bytes_]]]:
        """The chunks whose dead letters are there, but for the others, which are sorted."""
        for counts, data in self.names.items():
            chunks = np.frombuffer(data, NAME_FIELDS)["chunk"]
            yield counts, chunks[are_among(chunks, dead_letters.chunk_names) & ~are_among(chunks, other_chunks)]


@dataclass
class FailureGroup:
    """The rows that failed for one reason."""

    name: str  # stage/kind
    count: int = 0
    examples: list[DeadLetter] = field(default_factory=list)


class FailureGroups:
    def __init__(self, max_examples: int):
        self.max_examples = max_examples
        self.by_name: dict[str, FailureGroup] = {}

    def get_group(self, name: str) -> FailureGroup:
        return self.by_name.setdefault(name, FailureGroup(name))

    def add_counts(self, counts: ReasonCounts, chunk_count: int) -> bool:
        """Whether a reason lacks examples."""
        groups = [self.get_group(name) for name, _ in counts]
        for group, (_, row_count) in zip(groups, counts, strict=True):
            group.count += row_count * chunk_count
        return any(len(group.examples) < self.max_examples for group in groups)

    def add_letters(self, letters: Iterable[DeadLetter], *, are_counted: bool = False) -> None:
        for letter in letters:
            group = self.get_group(f"{letter.stage}/{letter.kind}")
            group.count += not are_counted
            if len(group.examples) < self.max_examples:
                group.examples.append(letter)

    def list_groups(self) -> list[FailureGroup]:
        """The most frequent reason first."""
        return sorted(self.by_name.values(), key=lambda group: -group.count)
