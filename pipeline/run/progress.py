"""Receipts as they come -> what a person sees of a run: one live display, or a line now and then in a log.

On a terminal and in a notebook the display stays in its place and what is said scrolls above it. Everywhere else
lines come at growing distances, so that a log of a night can still be read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from threading import Lock
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.output.commit import Receipt
from pipeline.run import log
from pipeline.run.tally import Tally

Say = Callable[[str], None]
FIRST_LINE_S, LAST_LINE_S = 5.0, 120.0  # between two lines of a log: each time twice as long, up to this
PER_SECOND = 2  # pictures of the live display
RATE_S = 120.0  # the time left follows from what was done in so many seconds


class Progress:
    """Opened around a run. `say` takes lines in place of the terminal; `still`: others write, too."""

    def __init__(self, name: str, *, say: Say | None = None, console: Console | None = None, still: bool = False):
        self.name, self.taker, self.still = name, say, still
        self.under_way: dict[str, int] = {}  # rows, by stage
        self.console = console or Console(stderr=True)
        self.rows, self.tally, self.lock = 0, Tally(), Lock()
        self.started = self.said = time.monotonic()
        self.gap_s = FIRST_LINE_S
        self.marks: deque[tuple[float, int]] = deque()
        self.live: Live | None = None

    def __enter__(self) -> Progress:
        return self

    def begin(self, rows: int) -> None:
        """So many rows from now on; the clock starts."""
        self.rows = rows
        self.started = self.said = time.monotonic()
        self.marks.append((self.started, 0))
        if rows and self.taker is None and not self.still and (self.console.is_terminal or self.console.is_jupyter):
            self.live = Live(
                console=self.console, get_renderable=self.picture, refresh_per_second=PER_SECOND, transient=True
            )
            self.live.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """The display goes; what is said from now on stays."""
        if self.live:
            self.live.stop()
            self.live = None

    def watch(self, under_way: dict[str, int]) -> None:
        self.under_way = under_way

    def add(self, receipt: Receipt) -> None:
        with self.lock:
            self.tally.add(receipt)
            now = time.monotonic()
            self.marks.append((now, self.tally.done))
            while len(self.marks) > 2 and now - self.marks[0][0] > RATE_S:
                self.marks.popleft()
        if self.live is None and now - self.said >= self.gap_s and self.tally.done < self.rows:  # the end has its own
            self.say(self.line())
            self.said, self.gap_s = now, min(2 * self.gap_s, LAST_LINE_S)

    def say(self, line: str) -> None:
        if self.taker:
            self.taker(line)
        elif self.live:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            log.write(line)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def rate(self) -> float:
        """Rows per second, lately."""
        (since, before), (until, done) = self.marks[0], self.marks[-1]
        return (done - before) / (until - since) if until > since else 0.0

    def left_s(self) -> float | None:
        rate = self.rate()
        return max(0.0, (self.rows - self.tally.done) / rate - (time.monotonic() - self.marks[-1][0])) if rate else None

    def line(self) -> str:
        """How it goes, for a log."""
        tally, left = self.tally, self.left_s()
        parts = [f"{tally.done:,} of {self.rows:,} rows", f"{tally.failed:,} failed", f"{self.rate():.1f} rows/s"]
        parts += [f"{tally.vision_tokens / self.seconds:,.0f} vision tokens/s", *spoken_share(tally)]
        parts += spoken_rows(self.under_way)
        return ", ".join([*parts, *([f"{clock(left)} left"] if left is not None else [])])

    def picture(self) -> Group:
        """The same as three lines that stay in their place."""
        with self.lock:
            tally, rate, left = self.tally, self.rate(), self.left_s()
            seconds = max(self.seconds, 1e-9)
            top = Table.grid(padding=(0, 2), expand=True)
            top.add_column(no_wrap=True)
            top.add_column(ratio=1)
            top.add_column(no_wrap=True, justify="right")
            top.add_row(
                Text(self.name, style="bold"),
                ProgressBar(total=self.rows, completed=tally.done, pulse=not tally.done),
                f"{tally.done:,} of {self.rows:,} rows",
            )
            ahead = f"{clock(left)} left" if left is not None else "the workers start" if not tally.done else ""
            speed = [f"{rate:.1f} rows/s", f"{tally.vision_tokens / seconds:,.0f} vision tokens/s"]
            speed += [f"{tally.output_tokens / seconds:,.0f} output tokens/s"]
            pace = "  ".join([clock(seconds), ahead, *(speed if tally.done else [])])
            lines = [Text(pace, style="dim", no_wrap=True, overflow="ellipsis")]
            if busy := [*spoken_rows(self.under_way), *spoken_share(tally)]:
                lines.append(Text("; ".join(busy), style="dim", no_wrap=True, overflow="ellipsis"))
            if tally.failed:
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in tally.kinds.most_common(3))
                lines.append(Text(f"{tally.failed:,} failed: {kinds}", style="yellow", overflow="ellipsis"))
            return Group(top, *lines)

    def last_line(self) -> str:
        """The whole run in one line."""
        tally, seconds = self.tally, max(self.seconds, 1e-9)
        vision, output = tally.vision_tokens / seconds, tally.output_tokens / seconds
        done = f"{tally.answered:,} answered, {tally.failed:,} failed in {clock(seconds)}"
        speed = f"{tally.done / seconds:.1f} rows/s, {vision:,.0f} vision and {output:,.0f} output tokens/s"
        return ", ".join([f"{done}: {speed}", *spoken_share(tally)])


def spoken_share(tally: Tally) -> list[str]:
    """What there is to say of how busy the engines were: nothing or one phrase."""
    if tally.working is None:
        return []
    waits = ", ".join(f"{share:.0%} on {step}" for step, share in list(tally.waits.items())[:2])
    return [f"{tally.working:.0%} of engine speed" + (f" (waited {waits})" if waits else "")]


def spoken_rows(under_way: Mapping[str, int]) -> list[str]:
    """What is under way now: nothing or one phrase.

    >>> spoken_rows({"prepare": 64, "generate": 0})
    ['now 64 rows preparing, 0 answering']
    """
    if not any(under_way.values()):
        return []
    return [f"now {under_way.get('prepare', 0):,} rows preparing, {under_way.get('generate', 0):,} answering"]


def clock(seconds: float) -> str:
    """
    >>> clock(4.25), clock(75), clock(7322)
    ('4.2 s', '1:15', '2:02:02')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
