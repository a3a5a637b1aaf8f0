"""Tells from time to time how much of a long computation is done, and how long the rest takes."""

from __future__ import annotations

import sys
import time

from pipeline.run.progress import MAX_LINE_INTERVAL_S, MIN_LINE_INTERVAL_S, format_duration


class ProgressLine:
    """Lines on stderr, each after twice the time of the one before; on a terminal they replace each other."""

    def __init__(self) -> None:
        self.started_at = self.last_line_at = time.monotonic()
        self.is_terminal = sys.stderr.isatty()
        self.interval_s = MIN_LINE_INTERVAL_S

    def report_share(self, share: float) -> None:
        now = time.monotonic()
        if now - self.last_line_at < self.interval_s or not share:
            return
        left = format_duration((now - self.started_at) / share * (1 - share))
        print(f"{share:.0%} compared, {left} left", file=sys.stderr, end="\r" if self.is_terminal else "\n", flush=True)
        self.last_line_at = now
        self.interval_s = 1.0 if self.is_terminal else min(2 * self.interval_s, MAX_LINE_INTERVAL_S)
