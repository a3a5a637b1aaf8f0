"""Shows how far an export is: a bar on a terminal, a line for each group elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.progress import SpinnerColumn, TimeRemainingColumn


class ExportProgress:
    """Open while groups are written. The bar disappears at the end."""

    def __init__(self, group_count: int, max_rows: int, say: Callable[[str], None], console: Console | None = None):
        self.group_count, self.say = group_count, say
        self.written_groups = self.written_rows = 0
        console = console or Console(stderr=True)
        columns = (SpinnerColumn(), *ProgressBar.get_default_columns()[:-1], TimeRemainingColumn(compact=True))
        self.bar = ProgressBar(*columns, console=console, transient=True, redirect_stdout=False)
        self.task = self.bar.add_task("0 rows", total=max_rows)
        self.has_bar = console.is_terminal

    def __enter__(self) -> Self:
        if self.has_bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.has_bar:
            self.bar.stop()

    def show_rows(self, row_count: int) -> None:
        """Of the group that is being written."""
        rows = self.written_rows + row_count
        self.bar.update(self.task, completed=rows, description=f"{rows:,} rows")

    def finish_group(self, row_count: int) -> None:
        self.written_groups += 1
        self.written_rows += row_count
        self.show_rows(0)
        if not self.has_bar:
            self.say(f"{self.written_rows:,} rows, {self.written_groups:,} of {self.group_count:,} groups")
