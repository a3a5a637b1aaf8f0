"""Shows on a terminal how far a command is that reads much before it prints anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def show_progress(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """The bar is on stderr and disappears at the end. Without a terminal there is none."""
    console = Console(stderr=True)
    yield from track(items, label, total, console=console, transient=True, disable=not console.is_terminal)
