"""Receipts -> what a run adds up to so far, and whether it is worth going on."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from pipeline.errors import StoppedError
from pipeline.output.commit import Receipt

WINDOW, ENOUGH = 1000, 100  # rows that the error rate is of, and how many make it worth believing
PREPARING = ("fetch", "decode", "prompt", "read", "commit")  # what an engine may wait for
LEAST = 0.005  # of the time: a share that is worth a word


@dataclass
class Tally:
    names: set[str] = field(default_factory=set)  # of the chunks that were heard of
    answered: int = 0
    failed: int = 0
    vision_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cut_off: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)  # of all workers together, by what they went to
    window: deque[tuple[int, int]] = field(default_factory=deque)

    @property
    def done(self) -> int:
        return self.answered + self.failed

    def add(self, receipt: Receipt) -> None:
        self.names.add(receipt.key)
        self.answered += receipt.answered
        self.failed += receipt.failed
        self.vision_tokens += receipt.vision_tokens
        self.output_tokens += receipt.output_tokens
        self.prompt_tokens += receipt.prompt_tokens
        self.cut_off += receipt.cut_off
        self.kinds.update(receipt.kinds)
        self.seconds.update(receipt.seconds)
        self.examples = {**receipt.examples, **self.examples}
        if "." not in receipt.key:  # of rows that failed before, many may fail again
            self.window.append((receipt.answered, receipt.failed))
        while self.window and sum(map(sum, self.window)) - sum(self.window[0]) >= WINDOW:
            self.window.popleft()

    def stop_if_hopeless(self, error_rate: float) -> None:
        answered, failed = (sum(pair[each] for pair in self.window) for each in (0, 1))
        if answered + failed >= ENOUGH and failed / (answered + failed) > error_rate:
            raise StoppedError(
                f"stopped: {failed} of the last {answered + failed} rows failed, more than limits.error_rate "
                f"({error_rate:g}) allows. The commonest reasons:\n{self.reasons()}"
            )

    def reasons(self) -> str:
        such = {kind: f", such as {example}" for kind, example in self.examples.items()}  # not of what others committed
        common = self.kinds.most_common(3 if len(self.kinds) > 4 else 4)
        lines = [f"  {count:>6}  {kind}{such.get(kind, '')}" for kind, count in common]
        rest = self.kinds.total() - sum(count for _, count in common)
        return "\n".join([*lines, *([f"  {rest:>6}  of {len(self.kinds) - 3} other kinds"] if rest else [])])

    @property
    def working(self) -> float | None:
        """The share of their time that engines had something to do: of what the engine alone would reach."""
        worked, waited = self.seconds["worked"], self.seconds["waited"]
        return worked / (worked + waited) if worked + waited else None

    @property
    def waits(self) -> dict[str, float]:
        """The shares of their time that engines waited, by what took the others' time meanwhile."""
        preparing = {step: self.seconds[step] for step in PREPARING}
        whole = sum(preparing.values())
        if self.working is None or not whole:
            return {}
        shares = {step: (1 - self.working) * seconds / whole for step, seconds in preparing.items()}
        return {step: share for step, share in sorted(shares.items(), key=lambda each: -each[1]) if share >= LEAST}
