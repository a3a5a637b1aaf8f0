"""Adds up the receipts of a run, and stops a run in which too many rows fail."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from pipeline.errors import StoppedError
from pipeline.output.commit import CommitReceipt
from pipeline.output.part_listing import PartRecorder
from pipeline.types import NO_TOKENS, TokenCounts, add_counts

ERROR_WINDOW_ROWS = 1000  # the error rate is that of the last rows
MIN_ROWS_FOR_ERROR_RATE = 100
PREPARE_STEPS = ("fetch", "decode", "prompt", "read", "commit")  # an engine may wait for these
LATE_STEP = "late"  # rows are prepared at a replica, because their chunk is too heavy to travel
MIN_WAIT_SHARE = 0.005  # a smaller share of the time is not worth a word
MAX_REASONS = 4


@dataclass
class RunTotals:
    committed_parts: PartRecorder = field(default_factory=PartRecorder)
    answered: int = 0
    failed: int = 0
    tokens: TokenCounts = NO_TOKENS  # of all replies
    discarded_tokens: TokenCounts = NO_TOKENS  # of these, of replies that are in no row
    cut_off: int = 0
    failure_counts: Counter[str] = field(default_factory=Counter)
    failure_examples: dict[str, str] = field(default_factory=dict)
    worker_seconds: Counter[str] = field(default_factory=Counter)  # of all workers together, by step
    recent_counts: deque[tuple[int, int]] = field(default_factory=deque)  # (answered, failed) of the last chunks

    @property
    def done_rows(self) -> int:
        return self.answered + self.failed

    def add_receipt(self, receipt: CommitReceipt) -> None:
        self.committed_parts.add(receipt.part_name, receipt.part_info)
        self.answered += receipt.answered
        self.failed += receipt.failed
        self.tokens = add_counts(self.tokens, receipt.tokens)
        self.discarded_tokens = add_counts(self.discarded_tokens, receipt.discarded_tokens)
        self.cut_off += receipt.cut_off
        self.failure_counts.update(receipt.failure_counts)
        self.worker_seconds.update(receipt.worker_seconds)
        for row in receipt.failed_rows:
            self.failure_examples.setdefault(f"{row.stage}/{row.kind}", row.format_example())
        if "." not in receipt.part_name:  # many rows of a later generation, which failed before, may fail again
            self.recent_counts.append((receipt.answered, receipt.failed))
        while len(self.recent_counts) > 1 and self.count_recent_rows(skip=1) >= ERROR_WINDOW_ROWS:
            self.recent_counts.popleft()

    def count_recent_rows(self, skip: int = 0) -> int:
        return sum(answered + failed for answered, failed in list(self.recent_counts)[skip:])

    def raise_if_error_rate_exceeded(self, error_rate: float) -> None:
        rows = self.count_recent_rows()
        failed_rows = sum(failed for _, failed in self.recent_counts)
        if rows >= MIN_ROWS_FOR_ERROR_RATE and failed_rows / rows > error_rate:
            raise StoppedError(
                f"stopped: {failed_rows} of the last {rows} rows failed, more than limits.error_rate "
                f"({error_rate:g}) allows. The most frequent reasons:\n{self.format_failure_reasons()}"
            )

    def format_failure_reasons(self) -> str:
        most_common = self.failure_counts.most_common()
        shown = most_common if len(most_common) <= MAX_REASONS else most_common[: MAX_REASONS - 1]
        lines = [f"  {count:>6}  {kind}{self.format_example(kind)}" for kind, count in shown]
        if hidden := most_common[len(shown) :]:
            lines.append(f"  {sum(count for _, count in hidden):>6}  of {len(hidden)} other kinds")
        return "\n".join(lines)

    def format_example(self, kind: str) -> str:
        example = self.failure_examples.get(kind)
        return f", such as {example}" if example else ""

    @property
    def busy_share(self) -> float | None:
        """The share of their time in which the engines had work."""
        worked, waited = self.worker_seconds["worked"], self.worker_seconds["waited"]
        return worked / (worked + waited) if worked + waited else None

    @property
    def wait_shares(self) -> dict[str, float]:
        """The share of their time in which the engines waited, divided among the steps by the time that these took."""
        step_seconds = {step: self.worker_seconds[step] for step in PREPARE_STEPS}
        total_seconds = sum(step_seconds.values())
        if self.busy_share is None or not total_seconds:
            return {}
        waiting_share = 1 - self.busy_share
        shares = {step: waiting_share * seconds / total_seconds for step, seconds in step_seconds.items()}
        largest_first = sorted(shares.items(), key=lambda item: -item[1])
        return {step: share for step, share in largest_first if share >= MIN_WAIT_SHARE}
