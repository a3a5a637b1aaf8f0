"""Shows the progress of a run: a live display on a terminal or in a notebook, and lines in a log elsewhere.

Messages scroll above the live display. The intervals between lines in a log grow, so that the log of a night stays
readable.
"""

from __future__ import annotations

import time
from collections import deque
from threading import Lock
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.output.commit import CommitReceipt
from pipeline.run import log
from pipeline.run.log import Say
from pipeline.run.runner import WorkInFlight
from pipeline.run.tally import RunTotals

MIN_LINE_INTERVAL_S, MAX_LINE_INTERVAL_S = 5.0, 120.0  # each interval between lines is twice the one before
REFRESHES_PER_SECOND = 2  # of the live display
RATE_WINDOW_S = 120.0  # the current rate is that of the last seconds
MAX_SHOWN_KINDS = 3


class Progress:
    """Open during a run. `say` takes the lines that otherwise go to the terminal.

    `live_disabled` is for a run during which Ray writes to the terminal, too.
    """

    def __init__(
        self, job_name: str, *, say: Say | None = None, console: Console | None = None, live_disabled: bool = False
    ):
        self.job_name, self.line_sink, self.live_disabled = job_name, say, live_disabled
        self.work = WorkInFlight()
        self.console = console or Console(stderr=True)
        self.total_rows, self.totals, self.lock = 0, RunTotals(), Lock()
        self.started_at = self.last_line_at = time.monotonic()
        self.line_interval_s = MIN_LINE_INTERVAL_S
        self.rate_samples: deque[tuple[float, int]] = deque()
        self.live: Live | None = None

    def __enter__(self) -> Progress:
        return self

    def start(self, total_rows: int) -> None:
        """Start the clock of the run, and the display."""
        self.total_rows = total_rows
        self.started_at = self.last_line_at = time.monotonic()
        self.rate_samples.append((self.started_at, 0))
        is_interactive = self.console.is_terminal or self.console.is_jupyter
        if total_rows and self.line_sink is None and is_interactive and not self.live_disabled:
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
        """Remove the display. Later messages stay on the screen."""
        if self.live:
            self.live.stop()
            self.live = None

    def show_work(self, work: WorkInFlight) -> None:
        self.work = work
        self.say_line_if_due()

    def add_receipt(self, receipt: CommitReceipt) -> None:
        with self.lock:
            self.totals.add_receipt(receipt)
            now = time.monotonic()
            self.rate_samples.append((now, self.totals.done_rows))
            while len(self.rate_samples) > 2 and now - self.rate_samples[0][0] > RATE_WINDOW_S:
                self.rate_samples.popleft()
        self.say_line_if_due()

    def say_line_if_due(self) -> None:
        now = time.monotonic()
        is_due = self.live is None and now - self.last_line_at >= self.line_interval_s
        if is_due and self.totals.done_rows < self.total_rows:  # the end has a line of its own
            self.say(self.format_line())
            self.last_line_at, self.line_interval_s = now, min(2 * self.line_interval_s, MAX_LINE_INTERVAL_S)

    def say(self, line: str) -> None:
        if self.line_sink:
            self.line_sink(line)
        elif self.live:
            self.console.print(log.escape_control_characters(line), markup=False, highlight=False, soft_wrap=True)
        else:
            log.write_line(line)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_at

    def compute_rate(self) -> float:
        """Rows per second within the rate window."""
        (start, done_before), (end, done_rows) = self.rate_samples[0], self.rate_samples[-1]
        return (done_rows - done_before) / (end - start) if end > start else 0.0

    def estimate_remaining_s(self) -> float | None:
        rate = self.compute_rate()
        if not rate:
            return None
        since_last_receipt = time.monotonic() - self.rate_samples[-1][0]
        return max(0.0, (self.total_rows - self.totals.done_rows) / rate - since_last_receipt)

    def format_line(self) -> str:
        """One line for a log."""
        totals, remaining_s = self.totals, self.estimate_remaining_s()
        parts = [f"{totals.done_rows:,} of {self.total_rows:,} rows"]
        if totals.done_rows:
            parts += [
                f"{totals.failed:,} failed",
                f"{self.compute_rate():.1f} rows/s",
                f"{totals.tokens.vision / self.elapsed_s:,.0f} vision tokens/s",
            ]
        parts += [*format_busy_share(totals), *format_work(self.work)]
        if remaining_s is not None:
            parts.append(f"{format_duration(remaining_s)} left")
        return ", ".join(parts)

    def render_display(self) -> Group:
        """Two to four lines: the bar, the pace, the workers and the failures."""
        with self.lock:
            lines = [Text(self.format_pace(), style="dim", no_wrap=True, overflow="ellipsis")]
            if workers := [*format_work(self.work), *format_busy_share(self.totals)]:
                lines.append(Text("; ".join(workers), style="dim", no_wrap=True, overflow="ellipsis"))
            if failed := self.totals.failed:
                most_common = self.totals.failure_counts.most_common(MAX_SHOWN_KINDS)
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in most_common)
                lines.append(Text(f"{failed:,} failed: {kinds}", style="yellow", overflow="ellipsis"))
            return Group(self.render_bar(), *lines)

    def render_bar(self) -> Table:
        done_rows = self.totals.done_rows
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            Text(self.job_name, style="bold"),
            ProgressBar(total=self.total_rows, completed=done_rows, pulse=not done_rows),
            f"{done_rows:,} of {self.total_rows:,} rows",
        )
        return bar

    def format_pace(self) -> str:
        totals, remaining_s = self.totals, self.estimate_remaining_s()
        seconds = max(self.elapsed_s, 1e-9)
        if remaining_s is not None:
            outlook = f"{format_duration(remaining_s)} left"
        else:
            outlook = "" if totals.done_rows or self.work.replicas_ready else "the workers start"
        parts = [format_duration(seconds), outlook]
        if totals.done_rows:
            parts += [
                f"{self.compute_rate():.1f} rows/s",
                f"{totals.tokens.vision / seconds:,.0f} vision tokens/s",
                f"{totals.tokens.output / seconds:,.0f} output tokens/s",
            ]
        return "  ".join(parts)

    def format_summary(self) -> str:
        """The whole run in one line."""
        totals, seconds = self.totals, max(self.elapsed_s, 1e-9)
        vision, output = totals.tokens.vision / seconds, totals.tokens.output / seconds
        rows = f"{totals.answered:,} answered, {totals.failed:,} failed in {format_duration(seconds)}"
        speed = f"{totals.done_rows / seconds:.1f} rows/s, {vision:,.0f} vision and {output:,.0f} output tokens/s"
        return ", ".join([f"{rows}: {speed}", *format_busy_share(totals)])


def format_busy_share(totals: RunTotals) -> list[str]:
    """How busy the engines were, as one phrase; empty if it is not known."""
    if totals.busy_share is None:
        return []
    waits = ", ".join(f"{share:.0%} on {step}" for step, share in list(totals.wait_shares.items())[:2])
    return [f"{totals.busy_share:.0%} of engine speed" + (f" (waited {waits})" if waits else "")]


def format_work(work: WorkInFlight) -> list[str]:
    """Phrases; none if nothing is known.

    >>> format_work(WorkInFlight(rows_preparing=64, replicas_starting=1, replicas_ready=1))
    ['now 64 rows preparing, 0 answering', '1 of 2 replicas ready']
    """
    phrases = []
    if work.rows_preparing or work.rows_answering:
        phrases.append(f"now {work.rows_preparing:,} rows preparing, {work.rows_answering:,} answering")
    if work.replicas_starting:
        phrases.append(f"{work.replicas_ready:,} of {work.replicas_starting + work.replicas_ready:,} replicas ready")
    return phrases


def format_count(number: int, noun: str) -> str:
    """
    >>> format_count(1, "row"), format_count(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_duration(seconds: float) -> str:
    """
    >>> format_duration(4.25), format_duration(75), format_duration(7322)
    ('4.2 s', '1:15', '2:02:02')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remaining_seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{remaining_seconds:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{remaining_seconds:02}"
