"""Collects what people should know about an export beside its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Remarks:
    """How often something was met, and an example."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, text: str, example: str = "", count: int = 1) -> None:
        """`text` follows a number: "media that cannot be read"."""
        before, first_example = self.found.get(text, (0, example))
        self.found[text] = before + count, first_example

    def add_all(self, found: Mapping[str, Sequence[Any]]) -> None:
        for text, (count, example) in found.items():
            self.add(text, example, count)

    def format_lines(self) -> list[str]:
        return [
            f"{count:,} {text}{f', for instance {example}' if example else ''}"
            for text, (count, example) in self.found.items()
        ]
