"""Finds prompts that begin alike, so that what they share is computed once. Plain Python without tensors.

A prompt is cut into blocks. The hash of a block stands for its tokens, their positions, the pixels that they stand for,
and all blocks before it. Its keys and values lie at the start of the run of a sequence that computed it. A sequence
whose prompt begins with the same blocks copies them to its own run in its first step. When a sequence ends, the blocks
of its prompt are kept for later ones, until the scheduler needs the room.

With linear attention, a block is of use only together with the state after it. So a sequence stops its prefill where
the prompt of a waiting sequence departs from its own, and leaves the state there in a row that no slot writes again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice, pairwise
from typing import NamedTuple

from pipeline.model.engines.torch.cache_runs import Run
from pipeline.model.engines.torch.prompt_blocks import PrefixRun, PromptBlock
from pipeline.model.engines.torch.sequence import SequenceState

MIN_AWAITED_TOKENS = 64  # for fewer, a sequence does not wait until another has computed them


class PrefixMatch(NamedTuple):
    run: PrefixRun | None
    tokens: int  # that can be copied from the run
    awaited_tokens: int  # that can be copied later; 0 where waiting for them does not pay


class PrefixCache:
    def __init__(self, max_kept: int, state_rows: Iterable[int] | None = None):
        """`state_rows` are for states that are kept; None for a model without linear attention."""
        self.max_kept = max_kept
        self.free_state_rows = None if state_rows is None else list(state_rows)
        self.runs_by_hash: dict[bytes, dict[PrefixRun, None]] = {}
        self.run_numbers = count()  # by admission
        self.kept: dict[PrefixRun, None] = {}  # in the order of their last use
        self.new_counts: Counter[bytes] = Counter()  # of sequences that have computed nothing, by hash of a block

    def count_new(self, sequence: SequenceState, change: int) -> None:
        for block in sequence.blocks:
            self.new_counts[block.hash] += change
            if not self.new_counts[block.hash]:
                del self.new_counts[block.hash]

    def add_run(self, sequence: SequenceState) -> list[Run]:
        """A sequence is admitted: others may copy what it will compute. Returns what is free now."""
        blocks, rows, freed = sequence.blocks, {}, []
        if self.free_state_rows is not None:
            blocks = self.plan_stops(blocks)
            unneeded = (run for run in list(self.kept) if not self.is_needed(run))
            while len(self.free_state_rows) < len(blocks) and (run := next(unneeded, None)):
                freed.append(self.evict(run))
            blocks = blocks[: len(self.free_state_rows)]
            rows = {block.end: self.free_state_rows.pop() for block in blocks}
        run = sequence.prefix_run = PrefixRun(sequence.run_start, blocks, rows, next(self.run_numbers))
        for block in blocks:
            self.runs_by_hash.setdefault(block.hash, {})[run] = None
        return freed

    def plan_stops(self, blocks: Sequence[PromptBlock]) -> Sequence[PromptBlock]:
        """The blocks at whose ends other new prompts depart from this one, unless a run has their states."""
        counts = [*(self.new_counts[block.hash] for block in blocks), 1]
        pairs = zip(blocks, pairwise(counts), strict=True)
        return [block for block, (here, after) in pairs if here > after and block.hash not in self.runs_by_hash]

    def find(self, sequence: SequenceState) -> PrefixMatch:
        """The longest prefix that a run has computed. Only sequences that were admitted earlier are waited for."""
        own, awaited_tokens = sequence.prefix_run, 0
        for block in reversed(sequence.blocks):
            for run in self.runs_by_hash.get(block.hash, ()):
                if run is not own and run.has_computed(block.end):
                    pays = awaited_tokens - block.end >= MIN_AWAITED_TOKENS
                    return PrefixMatch(run, block.end, awaited_tokens if pays else 0)
                if (own is None or run.number < own.number) and run.certain_tokens < block.end:
                    awaited_tokens = max(awaited_tokens, block.end)
        return PrefixMatch(None, 0, awaited_tokens if awaited_tokens >= MIN_AWAITED_TOKENS else 0)

    def adopt_prefix(self, sequence: SequenceState) -> None:
        """Choose what a sequence that has computed nothing copies in its first step. May be repeated until then."""
        run, tokens, sequence.awaited_tokens = self.find(sequence)
        if sequence.awaited_tokens:
            run, tokens = None, 0
        sequence.prefix_tokens = sequence.computed_tokens = tokens
        sequence.prefix_source = run
        sequence.kept_state_row = run.state_rows.get(tokens) if run else None
        if run in self.kept:
            del self.kept[run]
            self.kept[run] = None

    def retire(self, sequence: SequenceState, running: Iterable[SequenceState]) -> list[Run]:
        """A sequence has ended, and others run. Returns what is free now: all but the blocks that are kept."""
        run = sequence.prefix_run
        assert run is not None
        self.cut(run, 0 if sequence.failure else run.certain_tokens)
        if run.blocks:
            others = self.runs_by_hash[run.blocks[-1].hash]
            if any(other.has_computed(run.tokens) for other in others if other is not run):
                self.cut(run, 0)
        freed = [(run.start + run.tokens, sequence.run_tokens - run.tokens)]
        if run.blocks:
            self.kept[run] = None
        if len(self.kept) > self.max_kept:
            freed += [self.evict(oldest) for oldest in islice(self.order_evictions(running), 1)]
        return freed

    def order_evictions(self, running: Iterable[SequenceState]) -> Iterator[PrefixRun]:
        """Those that no new sequence needs come first, and of these the one that was not used for the longest time.

        A prefix that a running sequence is about to copy is left out: it is free for others after the next step.
        """
        copied = {sequence.prefix_source for sequence in running if sequence.is_new}
        needed = []
        for run in [run for run in self.kept if run not in copied]:
            if self.is_needed(run):
                needed.append(run)
            else:
                yield run
        yield from needed

    def is_needed(self, run: PrefixRun) -> bool:
        """Whether a new sequence begins with a block that no other run has computed."""
        return any(
            block.hash in self.new_counts
            and not any(other.has_computed(block.end) for other in self.runs_by_hash[block.hash] if other is not run)
            for block in reversed(run.blocks)
        )

    def evict(self, run: PrefixRun) -> Run:
        place = run.start, run.tokens
        self.cut(run, 0)
        del self.kept[run]
        return place

    def cut(self, run: PrefixRun, tokens: int) -> None:
        """Forget the blocks that end after so many tokens, and those whose state was not written."""
        gone = [block for block in run.blocks if block.end > tokens or not run.has_computed(block.end)]
        run.blocks = [block for block in run.blocks if block not in gone]
        for block in gone:
            del self.runs_by_hash[block.hash][run]
            if not self.runs_by_hash[block.hash]:
                del self.runs_by_hash[block.hash]
            run.state_rows.pop(block.end, None)
            if block.end in run.planned_rows:
                assert self.free_state_rows is not None
                self.free_state_rows.append(run.planned_rows.pop(block.end))
