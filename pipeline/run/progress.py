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

from pipeline.output.commit import CommitReceipt
from pipeline.run import log
from pipeline.run.tally import RunTotals

Say = Callable[[str], None]
MIN_LINE_INTERVAL_S, MAX_LINE_INTERVAL_S = 5.0, 120.0  # between two lines of a log: each time twice as long, up to this
REFRESHES_PER_SECOND = 2  # pictures of the live display
RATE_WINDOW_S = 120.0  # the time left follows from what was done in so many seconds


class Progress:
    """Opened around a run. `say` takes lines in place of the terminal; `still`: others write, too."""

    def __init__(
        self, job_name: str, *, say: Say | None = None, console: Console | None = None, live_disabled: bool = False
    ):
        self.job_name, self.line_sink, self.live_disabled = job_name, say, live_disabled
        self.rows_in_flight: dict[str, int] = {}  # rows, by stage
        self.console = console or Console(stderr=True)
        self.total_rows, self.totals, self.lock = 0, RunTotals(), Lock()
        self.started_at = self.last_line_at = time.monotonic()
        self.line_interval_s = MIN_LINE_INTERVAL_S
        self.rate_samples: deque[tuple[float, int]] = deque()
        self.live: Live | None = None

    def __enter__(self) -> Progress:
        return self

    def start(self, total_rows: int) -> None:
        """So many rows from now on; the clock starts."""
        self.total_rows = total_rows
        self.started_at = self.last_line_at = time.monotonic()
        self.rate_samples.append((self.started_at, 0))
        if (
            total_rows
            and self.line_sink is None
            and not self.live_disabled
            and (self.console.is_terminal or self.console.is_jupyter)
        ):
            self.live = Live(
                console=self.console,
                get_renderable=self.render_display,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
            )
            self.live.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_display()

    def stop_display(self) -> None:
        """The display goes; what is said from now on stays."""
        if self.live:
            self.live.stop()
            self.live = None

    def set_rows_in_flight(self, rows_in_flight: dict[str, int]) -> None:
        self.rows_in_flight = rows_in_flight

    def add_receipt(self, receipt: CommitReceipt) -> None:
        with self.lock:
            self.totals.add_receipt(receipt)
            now = time.monotonic()
            self.rate_samples.append((now, self.totals.done_rows))
            while len(self.rate_samples) > 2 and now - self.rate_samples[0][0] > RATE_WINDOW_S:
                self.rate_samples.popleft()
        if (
            self.live is None
            and now - self.last_line_at >= self.line_interval_s
            and self.totals.done_rows < self.total_rows
        ):  # the end has its own
            self.say(self.format_line())
            self.last_line_at, self.line_interval_s = now, min(2 * self.line_interval_s, MAX_LINE_INTERVAL_S)

    def say(self, line: str) -> None:
        if self.line_sink:
            self.line_sink(line)
        elif self.live:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            log.write_line(line)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_at

    def compute_rate(self) -> float:
        """Rows per second, lately."""
        (since, before), (until, done) = self.rate_samples[0], self.rate_samples[-1]
        return (done - before) / (until - since) if until > since else 0.0

    def estimate_remaining_s(self) -> float | None:
        rate = self.compute_rate()
        return (
            max(0.0, (self.total_rows - self.totals.done_rows) / rate - (time.monotonic() - self.rate_samples[-1][0]))
            if rate
            else None
        )

    def format_line(self) -> str:
        """How it goes, for a log."""
        tally, left = self.totals, self.estimate_remaining_s()
        parts = [
            f"{tally.done_rows:,} of {self.total_rows:,} rows",
            f"{tally.failed:,} failed",
            f"{self.compute_rate():.1f} rows/s",
        ]
        parts += [f"{tally.vision_tokens / self.elapsed_s:,.0f} vision tokens/s", *format_busy_share(tally)]
        parts += format_rows_in_flight(self.rows_in_flight)
        return ", ".join([*parts, *([f"{format_duration(left)} left"] if left is not None else [])])

    def render_display(self) -> Group:
        """The same as three lines that stay in their place."""
        with self.lock:
            tally, rate, left = self.totals, self.compute_rate(), self.estimate_remaining_s()
            seconds = max(self.elapsed_s, 1e-9)
            top = Table.grid(padding=(0, 2), expand=True)
            top.add_column(no_wrap=True)
            top.add_column(ratio=1)
            top.add_column(no_wrap=True, justify="right")
            top.add_row(
                Text(self.job_name, style="bold"),
                ProgressBar(total=self.total_rows, completed=tally.done_rows, pulse=not tally.done_rows),
                f"{tally.done_rows:,} of {self.total_rows:,} rows",
            )
            ahead = (
                f"{format_duration(left)} left"
                if left is not None
                else "the workers start"
                if not tally.done_rows
                else ""
            )
            speed = [f"{rate:.1f} rows/s", f"{tally.vision_tokens / seconds:,.0f} vision tokens/s"]
            speed += [f"{tally.output_tokens / seconds:,.0f} output tokens/s"]
            pace = "  ".join([format_duration(seconds), ahead, *(speed if tally.done_rows else [])])
            lines = [Text(pace, style="dim", no_wrap=True, overflow="ellipsis")]
            if busy := [*format_rows_in_flight(self.rows_in_flight), *format_busy_share(tally)]:
                lines.append(Text("; ".join(busy), style="dim", no_wrap=True, overflow="ellipsis"))
            if tally.failed:
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in tally.failure_counts.most_common(3))
                lines.append(Text(f"{tally.failed:,} failed: {kinds}", style="yellow", overflow="ellipsis"))
            return Group(top, *lines)

    def format_summary(self) -> str:
        """The whole run in one line."""
        tally, seconds = self.totals, max(self.elapsed_s, 1e-9)
        vision, output = tally.vision_tokens / seconds, tally.output_tokens / seconds
        done = f"{tally.answered:,} answered, {tally.failed:,} failed in {format_duration(seconds)}"
        speed = f"{tally.done_rows / seconds:.1f} rows/s, {vision:,.0f} vision and {output:,.0f} output tokens/s"
        return ", ".join([f"{done}: {speed}", *format_busy_share(tally)])


def format_busy_share(totals: RunTotals) -> list[str]:
    """What there is to say of how busy the engines were: nothing or one phrase."""
    if totals.busy_share is None:
        return []
    waits = ", ".join(f"{share:.0%} on {step}" for step, share in list(totals.wait_shares.items())[:2])
    return [f"{totals.busy_share:.0%} of engine speed" + (f" (waited {waits})" if waits else "")]


def format_rows_in_flight(rows_in_flight: Mapping[str, int]) -> list[str]:
    """What is under way now: nothing or one phrase.

    >>> spoken_rows({"prepare": 64, "generate": 0})
    ['now 64 rows preparing, 0 answering']
    """
    if not any(rows_in_flight.values()):
        return []
    return [f"now {rows_in_flight.get('prepare', 0):,} rows preparing, {rows_in_flight.get('generate', 0):,} answering"]


def format_duration(seconds: float) -> str:
    """
    >>> clock(4.25), clock(75), clock(7322)
    ('4.2 s', '1:15', '2:02:02')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
