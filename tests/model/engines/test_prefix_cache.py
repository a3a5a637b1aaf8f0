"""Shared prefixes and runs that move: what a sequence finds in its run is what it would have computed there itself."""

from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.engines.torch.cache_runs import release_run
from pipeline.model.engines.torch.linear_state import ZERO_ROW, list_kept_rows
from pipeline.model.engines.torch.prompt_blocks import BLOCK_TOKENS, ClipSpan, hash_blocks
from pipeline.model.engines.torch.scheduler import ExpectedAnswer, Scheduler
from pipeline.model.engines.torch.sequence import SequenceState
from pipeline.model.engines.torch.step_runner import build_step_inputs
from pipeline.types import Failure, Request, Sampling


def build_sequence(name: str, prompt: list[int], new_tokens: int) -> SequenceState:
    ids = np.asarray(prompt, np.int32)
    positions = np.arange(len(ids), dtype=np.int32)[None]
    request = Request(name, (), ids, positions, sampling=Sampling(max_new_tokens=new_tokens))
    return SequenceState(request, new_tokens, (), np.zeros(0, np.int64), blocks=hash_blocks(ids, positions, ()))


KV_TOKENS = 700


@dataclass
class Device:
    """Memory that holds, in place of keys, values and states, the tokens that they depend on."""

    scheduler: Scheduler
    kv_tokens: int = KV_TOKENS
    memory: dict[int, tuple[int, ...]] = field(default_factory=dict)
    states: dict[int, tuple[int, ...]] = field(default_factory=lambda: {ZERO_ROW: ()})

    def run(self, batch) -> None:
        if not batch:
            return
        inputs = build_step_inputs(batch)
        for source, target, tokens in inputs.copies:
            self.memory |= {target + index: self.memory[source + index] for index in range(tokens)}
        for (sequence, count), (read, write) in zip(batch, inputs.state_rows, strict=True):
            first, tokens = sequence.computed_tokens, tuple(sequence.token_ids.tolist())
            start, length = sequence.run_of_next_step
            assert first + count <= length
            for index in range(first):
                assert self.memory[start + index] == tokens[: index + 1]
            for index in range(first, first + count):
                self.memory[start + index] = tokens[: index + 1]
            if self.scheduler.prefixes.free_state_rows is not None:
                assert self.states[read] == tokens[:first]
                self.states[write] = tokens[: first + count]

    def check_ranges(self) -> None:
        """Runs, kept prefixes and free ranges never overlap and are the whole cache."""
        runs = [(sequence.run_start, sequence.run_tokens) for sequence in self.scheduler.running]
        runs += [sequence.next_run for sequence in self.scheduler.running if sequence.next_run]
        runs += [(run.start, run.tokens) for run in self.scheduler.prefixes.kept]
        places = sorted([*runs, *self.scheduler.free_runs])
        assert [start for start, _ in places] == [0, *np.cumsum([tokens for _, tokens in places])[:-1]]
        assert sum(tokens for _, tokens in places) == self.kv_tokens


STEMS = {  # prompts begin with one of them, and some of these begin with each other
    name: list(range(first, first + length)) for name, first, length in (("a", 0, 150), ("b", 1000, 40), ("c", 0, 70))
}
PROMPTS = st.lists(
    st.tuples(st.sampled_from([*STEMS, ""]), st.integers(1, 90), st.integers(1, 9) | st.integers(1, 400)),
    min_size=1,
    max_size=24,
)


def build_prompts(shapes) -> list[SequenceState]:
    return [
        build_sequence(str(number), STEMS.get(stem, []) + [2000 + number] * tail, new_tokens)
        for number, (stem, tail, new_tokens) in enumerate(shapes)
    ]


@pytest.mark.parametrize("is_hybrid", [False, True])
@given(
    shapes=PROMPTS,
    slots=st.sampled_from([1, 2, 5, 12]),
    budget=st.sampled_from([16, 64, 4096]),
    launch_ahead=st.booleans(),
    first_guess=st.sampled_from([1, 5, 256]),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_a_run_holds_what_its_sequence_would_have_computed(
    is_hybrid, shapes, slots, budget, launch_ahead, first_guess, random
):
    scheduler = Scheduler(slots, KV_TOKENS, list_kept_rows(slots) if is_hybrid else None)
    scheduler.expected_answer = ExpectedAnswer(first_guess)
    device, arriving, pending = Device(scheduler), build_prompts(shapes), None
    finished, copied, steps = [], 0, 0
    while arriving or scheduler.waiting or scheduler.running:
        while arriving and random.random() < 0.7:
            scheduler.submit(arriving.pop(0))
        scheduler.admit_waiting()
        batch, pending = pending, None
        if not batch:
            batch = schedule(scheduler, budget)
            device.run(batch)
        device.check_ranges()
        assert bool(batch) == bool(scheduler.running)
        assert scheduler.blocked.isdisjoint(scheduler.running[:1])
        if random.random() < 0.8:  # else it fails after it was launched, and is repeated
            copied += sum(sequence.prefix_tokens for sequence, _ in batch if sequence.is_new)
            for sequence, count in batch:
                scheduler.mark_computed(sequence, count)
            complete = [sequence for sequence, _ in batch if not sequence.pending_tokens]
            ending = [
                sequence
                for sequence in complete
                if sequence.output_tokens == sequence.max_new_tokens or random.random() < 0.01
            ]
            continuing = dict.fromkeys(sequence for sequence in complete if sequence not in ending)
            for sequence in continuing:
                sequence.token_ids[sequence.known_tokens] = 9000 + sequence.known_tokens
            if launch_ahead:  # before the host knows these tokens
                pending = schedule(scheduler, budget, continuing)
            for sequence in continuing:
                sequence.known_tokens += 1
            device.run(pending)
            end_some(ending, scheduler, random)
        finished += retire(scheduler)
        pending = [item for item in pending or () if item[0] in scheduler.running]
        steps += 1
        assert steps < 12000
    assert sorted(finished, key=int) == [str(number) for number in range(len(shapes))]
    assert not scheduler.prefixes.new_counts
    check_nothing_is_lost(scheduler, slots, is_hybrid)


def schedule(scheduler: Scheduler, budget: int, sampled=()):
    return scheduler.schedule(lambda sequence: not sequence.awaited_tokens, budget, sampled)


def end_some(ending: list[SequenceState], scheduler: Scheduler, random: Random) -> None:
    for sequence in (*scheduler.running, *scheduler.displaced):
        if sequence in ending:
            sequence.finish = "length"
        elif random.random() < 0.001:
            sequence.failure = Failure(sequence.request.id, "generate", "model", "it failed")


def retire(scheduler: Scheduler) -> list[str]:
    sequences = (*scheduler.running, *scheduler.waiting)
    ended = [sequence for sequence in sequences if sequence.finish or sequence.failure]
    for sequence in ended:
        scheduler.remove(sequence)
    return [sequence.request.id for sequence in ended]


def check_nothing_is_lost(scheduler: Scheduler, slots: int, is_hybrid: bool) -> None:
    assert len(scheduler.prefixes.kept) <= slots
    for run in list(scheduler.prefixes.kept):
        scheduler.free_runs = release_run(scheduler.free_runs, *scheduler.prefixes.evict(run))
    assert scheduler.free_runs == ((0, KV_TOKENS),)
    assert not scheduler.prefixes.runs_by_hash
    assert sorted(scheduler.prefixes.free_state_rows or ()) == (list(list_kept_rows(slots)) if is_hybrid else [])


@pytest.mark.parametrize("is_hybrid", [False, True])
def test_a_shared_prefix_is_computed_once(is_hybrid):
    """Also by those that come when the sequence that computed it has gone on, or has ended."""
    scheduler = Scheduler(8, 4 * KV_TOKENS, list_kept_rows(8) if is_hybrid else None)
    device, computed = Device(scheduler), 0
    for sequence in build_prompts([("a", 5, 1)] * 6 + [("c", 5, 1)] * 6):
        scheduler.submit(sequence)
    while scheduler.waiting or scheduler.running:
        scheduler.admit_waiting()
        batch = schedule(scheduler, 4096)
        device.run(batch)
        for sequence, count in batch:
            computed += count
            scheduler.mark_computed(sequence, count)
            sequence.finish = None if sequence.pending_tokens else "stop"
        retire(scheduler)
    copied = [length // BLOCK_TOKENS * BLOCK_TOKENS for length in (150, 70)]
    assert computed == 155 + 5 * (155 - copied[0]) + 6 * (75 - copied[1])


def test_a_run_is_no_source_before_it_holds_what_it_copies_itself():
    """The first sequence ends before the others could copy from it, and is kept for them."""
    scheduler = Scheduler(3, KV_TOKENS)
    device, (first, *others) = Device(scheduler), build_prompts([("a", 5, 9)] * 3)
    scheduler.submit(first)
    run_scheduler(scheduler, device, 1)
    for sequence in others:
        scheduler.submit(sequence)
    scheduler.admit_waiting()
    first.finish = "stop"
    retire(scheduler)
    device.run(schedule(scheduler, 4096))
    assert [sequence.prefix_source for sequence in others] == list(scheduler.prefixes.kept) * 2


def test_two_sequences_never_wait_for_each_other():
    """One plans to keep the state after 128 tokens; the other, admitted later, that after 64."""
    scheduler = Scheduler(2, KV_TOKENS, list_kept_rows(8))
    for sequence in build_prompts([("c", 5, 1), ("a", 5, 1), ("a", 5, 1), ("c", 5, 1)]):
        scheduler.submit(sequence)
    scheduler.admit_waiting()
    scheduler.running[0].failure = Failure("0", "generate", "model", "it failed")
    retire(scheduler)
    scheduler.admit_waiting()
    assert [list(sequence.prefix_run.planned_rows) for sequence in scheduler.running] == [[128], [64]]
    assert schedule(scheduler, 4096)


def test_a_row_is_never_kept_out_by_what_is_kept():
    scheduler = Scheduler(2, KV_TOKENS)
    for name in "ab":
        scheduler.submit(build_sequence(name, [ord(name)] * 300, 10))
    scheduler.admit_waiting()
    for sequence in list(scheduler.running):
        sequence.mark_computed(300)
        sequence.finish = "stop"
    retire(scheduler)
    assert [run.tokens for run in scheduler.prefixes.kept] == [288, 288]
    scheduler.submit(build_sequence("c", list(range(280)), 10))
    scheduler.admit_waiting()
    assert [sequence.request.id for sequence in scheduler.running] == ["c"]
    assert [run.blocks[0].hash for run in scheduler.prefixes.kept] == [build_sequence("b", [98] * 40, 1).blocks[0].hash]


IDS, POSITIONS = np.arange(100)[None] % 7, np.arange(300).reshape(3, 100)
CLIPS = [ClipSpan("x" * 32, 10, 50)]


@pytest.mark.parametrize(
    ("ids", "positions", "clips", "equal_blocks"),
    [
        (IDS, POSITIONS, CLIPS, 5),
        (IDS, POSITIONS, [ClipSpan("y" * 32, 10, 50)], 1),
        (np.where(np.arange(100) == 60, 9, IDS), POSITIONS, CLIPS, 3),
        (IDS, np.where(np.arange(100) == 45, 9, POSITIONS), CLIPS, 2),
    ],
)
def test_blocks_are_equal_where_tokens_positions_and_pixels_are(ids, positions, clips, equal_blocks):
    first, second = hash_blocks(IDS[0], POSITIONS, CLIPS), hash_blocks(ids[0], positions, clips)
    assert [block.end for block in first] == [block.end for block in second] == [10, 42, 50, 82]
    assert [one == other for one, other in zip(first, second, strict=True)] == [
        number < equal_blocks for number in range(4)
    ]


def run_scheduler(scheduler: Scheduler, device: Device, steps: int, budget: int = 4096) -> list[list[tuple[str, int]]]:
    """What each step computes. The only sequences that end are those whose budget is spent."""
    batches = []
    for _ in range(steps):
        scheduler.admit_waiting()
        batch = scheduler.schedule(lambda sequence: True, budget, prefer_decode=True)
        device.run(batch)
        batches.append([(sequence.request.id, count) for sequence, count in batch])
        for sequence, count in batch:
            scheduler.mark_computed(sequence, count)
            if sequence.output_tokens == sequence.max_new_tokens:
                sequence.finish = "length"
            elif not sequence.pending_tokens:
                sequence.known_tokens += 1
        retire(scheduler)
        device.check_ranges()
    return batches


def test_the_oldest_sequence_is_never_held_up_where_all_outgrow_their_runs():
    scheduler = Scheduler(16, KV_TOKENS)
    scheduler.expected_answer = ExpectedAnswer(1)
    for number in range(16):
        scheduler.submit(build_sequence(str(number), [number] * 30, KV_TOKENS - 30))
    batches = run_scheduler(scheduler, Device(scheduler), KV_TOKENS - 27)
    assert len(batches[0]) == 16
    assert sum("0" not in dict(batch) for batch in batches) < 4  # it begins anew where it is alone amid the cache
    assert "0" not in {sequence.request.id for sequence in (*scheduler.running, *scheduler.waiting)}


def test_a_sequence_that_lost_its_run_computes_its_tokens_again_together():
    scheduler = Scheduler(2, 150)
    scheduler.expected_answer = ExpectedAnswer(40)
    for name in "ab":
        scheduler.submit(build_sequence(name, [ord(name)] * 30, 60))
    batches = run_scheduler(scheduler, Device(scheduler, 150), 110, budget=50)
    assert scheduler.counters["displaced_runs"] == 1
    assert [count for batch in batches for name, count in batch if name == "b" and count > 1] == [20, 10, 50, 20]


def test_the_last_sequence_waits_for_room_and_loses_nothing():
    scheduler = Scheduler(2, 168)
    for name, expected, new_tokens in (("a", 100, 100), ("b", 5, 60)):
        scheduler.expected_answer = ExpectedAnswer(expected)
        scheduler.submit(build_sequence(name, [ord(name)] * 30, new_tokens))
        scheduler.admit_waiting()
    counts = [dict(batch).get("b", 0) for batch in run_scheduler(scheduler, Device(scheduler, 168), 152)]
    assert counts == [30, *[1] * 8, *[0] * 92, *[1] * 51]
    assert scheduler.counters["displaced_runs"] == 0


def test_runs_are_as_long_as_most_answers_of_the_run():
    expected = ExpectedAnswer(256)
    assert expected.tokens == 256
    for length in [*range(100, 400, 5), 4000]:
        expected.add_length(length)
    assert 370 <= expected.tokens < 400
    scheduler = Scheduler(8, KV_TOKENS)
    scheduler.expected_answer.add_length(10)
    for number in range(8):
        scheduler.submit(build_sequence(str(number), [number] * 30, 5 if number else 600))
    scheduler.admit_waiting()
    assert [sequence.run_tokens for sequence in scheduler.running] == [30 + 256, *[35] * 7]
