"""Receipts -> what a run adds up to so far, and whether it is worth going on."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from pipeline.errors import StoppedError
from pipeline.output.commit import CommitReceipt

ERROR_WINDOW_ROWS, MIN_ROWS_FOR_ERROR_RATE = (
    1000,
    100,
)  # rows that the error rate is of, and how many make it worth believing
PREPARE_STEPS = ("fetch", "decode", "prompt", "read", "commit")  # what an engine may wait for
MIN_WAIT_SHARE = 0.005  # of the time: a share that is worth a word


@dataclass
class RunTotals:
    reported_parts: set[str] = field(default_factory=set)  # of the chunks that were heard of
    answered: int = 0
    failed: int = 0
    vision_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cut_off: int = 0
    failure_counts: Counter[str] = field(default_factory=Counter)
    failure_examples: dict[str, str] = field(default_factory=dict)
    worker_seconds: Counter[str] = field(default_factory=Counter)  # of all workers together, by what they went to
    recent_counts: deque[tuple[int, int]] = field(default_factory=deque)

    @property
    def done_rows(self) -> int:
        return self.answered + self.failed

    def add_receipt(self, receipt: CommitReceipt) -> None:
        self.reported_parts.add(receipt.part_name)
        self.answered += receipt.answered
        self.failed += receipt.failed
        self.vision_tokens += receipt.vision_tokens
        self.output_tokens += receipt.output_tokens
        self.prompt_tokens += receipt.prompt_tokens
        self.cut_off += receipt.cut_off
        self.failure_counts.update(receipt.failure_counts)
        self.worker_seconds.update(receipt.worker_seconds)
        self.failure_examples = {**receipt.failure_examples, **self.failure_examples}
        if "." not in receipt.part_name:  # of rows that failed before, many may fail again
            self.recent_counts.append((receipt.answered, receipt.failed))
        while (
            self.recent_counts and sum(map(sum, self.recent_counts)) - sum(self.recent_counts[0]) >= ERROR_WINDOW_ROWS
        ):
            self.recent_counts.popleft()

    def raise_if_error_rate_exceeded(self, error_rate: float) -> None:
        answered, failed = (sum(pair[each] for pair in self.recent_counts) for each in (0, 1))
        if answered + failed >= MIN_ROWS_FOR_ERROR_RATE and failed / (answered + failed) > error_rate:
            raise StoppedError(
                f"stopped: {failed} of the last {answered + failed} rows failed, more than limits.error_rate "
                f"({error_rate:g}) allows. The commonest reasons:\n{self.format_failure_reasons()}"
            )

    def format_failure_reasons(self) -> str:
        such = {
            kind: f", such as {example}" for kind, example in self.failure_examples.items()
        }  # not of what others committed
        common = self.failure_counts.most_common(3 if len(self.failure_counts) > 4 else 4)
        lines = [f"  {count:>6}  {kind}{such.get(kind, '')}" for kind, count in common]
        rest = self.failure_counts.total() - sum(count for _, count in common)
        return "\n".join([*lines, *([f"  {rest:>6}  of {len(self.failure_counts) - 3} other kinds"] if rest else [])])

    @property
    def busy_share(self) -> float | None:
        """The share of their time that engines had something to do: of what the engine alone would reach."""
        worked, waited = self.worker_seconds["worked"], self.worker_seconds["waited"]
        return worked / (worked + waited) if worked + waited else None

    @property
    def wait_shares(self) -> dict[str, float]:
        """The shares of their time that engines waited, by what took the others' time meanwhile."""
        preparing = {step: self.worker_seconds[step] for step in PREPARE_STEPS}
        whole = sum(preparing.values())
        if self.busy_share is None or not whole:
            return {}
        shares = {step: (1 - self.busy_share) * seconds / whole for step, seconds in preparing.items()}
        return {
            step: share for step, share in sorted(shares.items(), key=lambda each: -each[1]) if share >= MIN_WAIT_SHARE
        }
