"""Collects what people should know about an export beside its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_LINES = 20


@dataclass
class Remarks:
    """How often something was met, and an example."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, text: str, example: str = "", count: int = 1) -> None:
        """`text` stands before the number: "media not copied"."""
        before, first_example = self.found.get(text, (0, example))
        self.found[text] = before + count, first_example

    def add_all(self, found: Mapping[str, Sequence[Any]]) -> None:
        for text, (count, example) in found.items():
            self.add(text, example, count)

    def format_lines(self) -> list[str]:
        """The most frequent first. All are in the notes of the groups."""
        by_count = sorted(self.found.items(), key=lambda remark: -remark[1][0])
        lines = [
            f"{text}: {count:,}{f', for instance {example}' if example else ''}"
            for text, (count, example) in by_count[:MAX_LINES]
        ]
        hidden = len(by_count) - len(lines)
        return [*lines, f"and {hidden:,} other remarks, in _groups/*.json"] if hidden else lines
