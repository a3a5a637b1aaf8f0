"""Decides which sequences run, and how many tokens of each a step computes. Plain Python without tensors.

On admission a sequence gets a slot and one run (a contiguous range) of the KV cache, for its prompt and an answer as
long as most of this engine are. One that needs more gets what is free behind its run, or moves to a longer run: its
next step copies it there. Where there is no room, sequences that were admitted later lose theirs, the last first: they
keep their tokens, and compute them again when they are admitted again, before all that are new. A sequence after which
none was admitted waits for those before it to end. So the oldest is always computed, and every sequence ends.

A sequence that does not fit yet may be overtaken by at most MAX_OVERTAKES later ones; after that, freed cache is kept
for it. Prefixes that are kept for later sequences take room that no sequence needs: see prefix_cache.py.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate

from pipeline.model.engines.torch.cache_runs import (
    FreeRuns,
    Run,
    allocate_with_evictions,
    extend_or_move,
    release_run,
)
from pipeline.model.engines.torch.prefix_cache import PrefixCache
from pipeline.model.engines.torch.sequence import SequenceState

MAX_OVERTAKES = 64

ScheduledBatch = Sequence[tuple[SequenceState, int]]  # sequences, and how many tokens of each are computed


class ExpectedAnswer:
    """The length that nine of ten of the last answers did not exceed."""

    def __init__(self, first_guess: int = 256, max_answers: int = 128):
        self.lengths = deque([first_guess], max_answers)
        self.tokens = first_guess

    def add_length(self, tokens: int) -> None:
        self.lengths.append(tokens)
        self.tokens = sorted(self.lengths)[len(self.lengths) * 9 // 10]


class Scheduler:
    def __init__(self, slots: int, kv_tokens: int, state_rows: Iterable[int] | None = None):
        """`state_rows` are for the states of shared prefixes; None for a model without linear attention."""
        self.slots = slots
        self.has_states = state_rows is not None  # of linear attention, one for each slot
        self.prefixes = PrefixCache(max_kept=slots, state_rows=state_rows)
        self.free_slots = list(range(slots))
        self.free_runs: FreeRuns = ((0, kv_tokens),)
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []  # by admission
        self.blocked: set[SequenceState] = set()  # those of them that wait for room
        self.displaced: list[SequenceState] = []  # that lost their runs in the last call of `schedule`
        self.expected_answer = ExpectedAnswer()
        self.counters = Counter(moved_runs=0, displaced_runs=0)

    def submit(self, sequence: SequenceState) -> None:
        self.waiting.append(sequence)
        self.prefixes.count_new(sequence, 1)

    def admit_waiting(self) -> None:
        """Fill the free slots, several at a time: a pass over one short prompt costs almost as much as over four."""
        free_slots = len(self.free_slots) if any(map(self.takes_slot, self.waiting)) else len(self.waiting)
        if not self.waiting or self.blocked or (self.running and free_slots < max(1, self.slots // 16)):
            return
        for sequence in self.running:
            if sequence.awaited_tokens:  # what was computed for it must not be evicted before it is copied
                self.prefixes.adopt_prefix(sequence)
        requests = [(self.count_reserved(sequence), sequence.overtaken_count) for sequence in self.waiting]
        kept = list(self.prefixes.order_evictions(self.running))
        run_starts, self.free_runs, evicted = choose_admissions(
            requests, self.free_runs, free_slots, MAX_OVERTAKES, [(run.start, run.tokens) for run in kept]
        )
        for run in kept[:evicted]:
            self.prefixes.evict(run)
        waiting, self.waiting = self.waiting, deque()
        for index, sequence in enumerate(waiting):
            if index in run_starts:
                sequence.run_start, sequence.run_tokens = run_starts[index], requests[index][0]
                if self.takes_slot(sequence):
                    sequence.slot = self.free_slots.pop()
                self.running.append(sequence)
                self.release(self.prefixes.add_run(sequence))
                self.prefixes.adopt_prefix(sequence)
            else:
                sequence.overtaken_count += sum(admitted > index for admitted in run_starts)
                self.waiting.append(sequence)

    def count_reserved(self, sequence: SequenceState) -> int:
        """The tokens of the run that a waiting sequence asks for."""
        if sequence.only_prefills:
            return sequence.max_tokens
        answer = max(self.expected_answer.tokens, 2 * sequence.output_tokens)
        return min(sequence.prompt_tokens + answer, sequence.max_tokens)

    def takes_slot(self, sequence: SequenceState) -> bool:
        """Sequences that only prefill are as many as their tokens allow, unless each has a state."""
        return self.has_states or not sequence.only_prefills

    def list_needed_clips(self, sequence: SequenceState) -> list[str]:
        """The pictures that a sequence needs, or will need once it is admitted."""
        match = self.prefixes.find(sequence) if sequence.run_start < 0 else None
        return sequence.list_needed_clips(max(match[1:]) if match else 0)

    def schedule(
        self,
        is_ready: Callable[[SequenceState], bool],
        budget: int,
        sampled: Collection[SequenceState] = (),
        *,
        prefer_decode: bool = False,
    ) -> ScheduledBatch:
        """The next batch; sequences with one token come first. Those in `sampled` have one, not read by the host yet.

        With `prefer_decode`, tokens that a grammar forced are computed one at a time unless some sequence has a prompt
        to compute: a step in which every sequence decodes is replayed as a graph, which is several times faster.
        """
        self.make_room(sampled)
        for sequence in self.running:
            if sequence.is_new:
                self.prefixes.adopt_prefix(sequence)
        ready = [sequence for sequence in self.running if is_ready(sequence) and sequence not in self.blocked]
        pending = [1 if sequence in sampled else sequence.schedulable_tokens for sequence in ready]
        is_whole = [sequence.is_in_branch for sequence in ready]
        if prefer_decode and all(sequence.is_prefilled for sequence in ready) and not any(is_whole):
            pending = [min(count, 1) for count in pending]
        counts = split_token_budget(pending, budget, is_whole)
        batch = [(sequence, count) for sequence, count in zip(ready, counts, strict=True) if count]
        return sorted(batch, key=lambda item: item[1] > 1)

    def make_room(self, sampled: Collection[SequenceState]) -> None:
        """Give longer runs to the sequences whose next token does not fit, the oldest first."""
        self.blocked, self.displaced = set(), []
        for sequence in list(self.running):
            needed = sequence.known_tokens + (sequence in sampled)
            if needed > sequence.run_of_next_step[1] and sequence not in self.displaced:
                self.lengthen_run(sequence, needed)

    def lengthen_run(self, sequence: SequenceState, needed: int) -> None:
        wanted = min(2 * needed - sequence.prompt_tokens, sequence.max_tokens)
        self.release(sequence.take_back_move())
        while not self.find_longer_run(sequence, needed, wanted):
            latest = next(other for other in reversed(self.running) if not other.only_prefills)
            if latest is sequence and len(self.running) > 1:
                self.blocked.add(sequence)
                return
            self.displace(latest)
            if latest is sequence:
                return
        self.expected_answer.add_length(needed - sequence.prompt_tokens)

    def find_longer_run(self, sequence: SequenceState, needed: int, wanted: int) -> bool:
        run, kept = (sequence.run_start, sequence.run_tokens), list(self.prefixes.order_evictions(self.running))
        found = extend_or_move(run, needed, wanted, self.free_runs, [(prefix.start, prefix.tokens) for prefix in kept])
        if found is None:
            return False
        longer, self.free_runs, evicted = found
        for prefix in kept[:evicted]:
            self.prefixes.evict(prefix)
        if longer[0] == sequence.run_start:
            sequence.run_tokens = longer[1]
        else:
            sequence.next_run = longer
            self.counters["moved_runs"] += 1
        return True

    def displace(self, sequence: SequenceState) -> None:
        """Take the run of a sequence, which waits before all others from here on."""
        if not sequence.is_new:
            self.prefixes.count_new(sequence, 1)
        self.vacate(sequence)
        sequence.forget_computed()
        self.waiting.appendleft(sequence)
        self.displaced.append(sequence)
        self.counters["displaced_runs"] += 1

    def mark_computed(self, sequence: SequenceState, token_count: int) -> None:
        if sequence.is_new:
            self.prefixes.count_new(sequence, -1)
        sequence.mark_computed(token_count)
        self.release(sequence.complete_move())

    def remove(self, sequence: SequenceState) -> None:
        """Free the slot and the cache of a running sequence, or drop one that waits."""
        if sequence.is_new:
            self.prefixes.count_new(sequence, -1)
        if sequence.run_start < 0:
            self.waiting.remove(sequence)
            return
        if sequence.finish and not sequence.only_prefills:
            self.expected_answer.add_length(sequence.output_tokens)
        self.vacate(sequence)

    def vacate(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        if sequence.slot >= 0:
            self.free_slots.append(sequence.slot)
        self.release(sequence.take_back_move())
        self.release(self.prefixes.retire(sequence, self.running))

    def release(self, runs: Iterable[Run]) -> None:
        for start, tokens in runs:
            self.free_runs = release_run(self.free_runs, start, tokens)


def select_sampled(batch: ScheduledBatch) -> list[SequenceState]:
    """The sequences whose next token can be sampled after a step over the batch: it reaches their last known token."""
    return [sequence for sequence, count in batch if sequence.reaches_last_token(count)]


def choose_admissions(
    waiting: Sequence[tuple[int, int]],
    free_runs: FreeRuns,
    slots: int,
    max_overtakes: int,
    kept: Sequence[Run] = (),
) -> tuple[dict[int, int], FreeRuns, int]:
    """Choose from waiting (tokens, overtaken count): a dict from index to start of run, and the remaining free runs.

    `kept` may be freed, from its front, if that admits a request. The number of those that were is returned, too.
    """
    run_starts: dict[int, int] = {}
    evicted = 0
    overtakes_left = len(waiting)  # how many more may overtake the requests that were passed over
    too_many_tokens = math.inf  # there is no room for so many
    for index, (tokens, overtaken_count) in enumerate(waiting):
        if len(run_starts) == slots or overtakes_left <= 0:
            break
        allocation = allocate_with_evictions(free_runs, tokens, kept[evicted:]) if tokens < too_many_tokens else None
        if allocation:
            run_starts[index], free_runs, count = allocation
            evicted += count
            overtakes_left -= 1
        else:
            too_many_tokens = min(tokens, too_many_tokens)
            overtakes_left = min(overtakes_left, max_overtakes - overtaken_count)
    return run_starts, free_runs, evicted


def split_token_budget(
    pending_tokens: Sequence[int], prefill_budget: int, is_whole: Sequence[bool] | None = None
) -> list[int]:
    """How many tokens of each sequence are computed now. One that decodes always gets its token, outside the budget.

    Those that are `whole` get all of their tokens or none; the first of a step gets them even beyond the budget.

    >>> split_token_budget([1, 700, 1, 600, 20], 1000)
    [1, 700, 1, 300, 0]
    >>> split_token_budget([700, 600, 20], 1000, [False, True, False])
    [700, 0, 20]
    """
    counts: list[int] = []
    for pending, whole in zip(pending_tokens, is_whole or [False] * len(pending_tokens), strict=True):
        if pending == 1 and not whole:
            counts.append(1)
        elif whole and pending > prefill_budget:
            counts.append(0 if any(counts) else pending)
            prefill_budget -= min(prefill_budget, counts[-1])
        else:
            counts.append(min(pending, prefill_budget))
            prefill_budget -= counts[-1]
    return counts


def count_fitting(patches: Sequence[int], budget: int) -> int:
    """The number of clip slices, from the front, that go through the vision tower together: at least one."""
    return max(1, bisect(list(accumulate(patches)), budget))
