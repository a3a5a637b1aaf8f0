"""Shared prefixes: what a sequence finds in its run is what it would have computed there itself."""

from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.engines.torch.linear_state import ZERO_ROW, list_kept_rows
from pipeline.model.engines.torch.prompt_blocks import BLOCK_TOKENS, ClipSpan, hash_blocks
from pipeline.model.engines.torch.scheduler import Scheduler, release_run
from pipeline.model.engines.torch.sequence import SequenceState
from pipeline.model.engines.torch.step_runner import build_step_inputs
from pipeline.types import Failure, Request, Sampling


def build_sequence(name: str, prompt: list[int], new_tokens: int) -> SequenceState:
    ids = np.asarray(prompt, np.int32)
    positions = np.arange(len(ids), dtype=np.int32)[None]
    request = Request(name, (), ids, positions, sampling=Sampling(max_new_tokens=new_tokens))
    return SequenceState(request, new_tokens, (), np.zeros(0, np.int64), blocks=hash_blocks(ids, positions, ()))


@dataclass
class Device:
    """Memory that holds, in place of keys, values and states, the tokens that they depend on."""

    scheduler: Scheduler
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
            for index in range(first):
                assert self.memory[sequence.run_start + index] == tokens[: index + 1]
            for index in range(first, first + count):
                self.memory[sequence.run_start + index] = tokens[: index + 1]
            if self.scheduler.prefixes.free_state_rows is not None:
                assert self.states[read] == tokens[:first]
                self.states[write] = tokens[: first + count]

    def check_ranges(self) -> None:
        """Runs, kept prefixes and free ranges never overlap and are the whole cache."""
        runs = [(sequence.run_start, sequence.reserved_tokens) for sequence in self.scheduler.running]
        runs += [(run.start, run.tokens) for run in self.scheduler.prefixes.kept]
        places = sorted([*runs, *self.scheduler.free_runs])
        assert [start for start, _ in places] == [0, *np.cumsum([tokens for _, tokens in places])[:-1]]
        assert sum(tokens for _, tokens in places) == KV_TOKENS


KV_TOKENS = 700
STEMS = {  # prompts begin with one of them, and some of these begin with each other
    name: list(range(first, first + length)) for name, first, length in (("a", 0, 150), ("b", 1000, 40), ("c", 0, 70))
}
PROMPTS = st.lists(
    st.tuples(st.sampled_from([*STEMS, ""]), st.integers(1, 90), st.integers(1, 9)), min_size=1, max_size=24
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
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_a_run_holds_what_its_sequence_would_have_computed(is_hybrid, shapes, slots, budget, launch_ahead, random):
    scheduler = Scheduler(slots, KV_TOKENS, list_kept_rows(slots) if is_hybrid else None)
    device, arriving, pending = Device(scheduler), build_prompts(shapes), None
    finished, copied, steps = [], 0, 0
    while arriving or scheduler.waiting or scheduler.running:
        while arriving and random.random() < 0.7:
            scheduler.submit(arriving.pop(0))
        scheduler.admit_waiting()
        device.check_ranges()
        batch, pending = pending, None
        if not batch:
            batch = schedule(scheduler, budget)
            device.run(batch)
        assert bool(batch) == bool(scheduler.running)
        if random.random() < 0.8:  # else it fails after it was launched, and is repeated
            copied += sum(sequence.prefix_tokens for sequence, _ in batch if sequence.is_new)
            for sequence, count in batch:
                scheduler.mark_computed(sequence, count)
            complete = [sequence for sequence, _ in batch if not sequence.pending_tokens]
            ending = [sequence for sequence in complete if sequence.output_tokens == sequence.max_new_tokens]
            for sequence in complete:
                if sequence not in ending:
                    sequence.token_ids[sequence.known_tokens] = 9000 + sequence.known_tokens
                    sequence.known_tokens += 1
            if launch_ahead:
                pending = schedule(scheduler, budget)
                device.run(pending)
            end_some(ending, scheduler, random)
        finished += retire(scheduler)
        pending = [item for item in pending or () if item[0] in scheduler.running]
        steps += 1
        assert steps < 3000
    assert sorted(finished, key=int) == [str(number) for number in range(len(shapes))]
    assert not scheduler.prefixes.new_counts
    check_nothing_is_lost(scheduler, slots, is_hybrid)


def schedule(scheduler: Scheduler, budget: int):
    return scheduler.schedule(lambda sequence: not sequence.awaited_tokens, budget)


def end_some(ending: list[SequenceState], scheduler: Scheduler, random: Random) -> None:
    for sequence in scheduler.running:
        if sequence in ending:
            sequence.finish = "length"
        elif random.random() < 0.03:
            sequence.failure = Failure(sequence.request.id, "generate", "model", "it failed")


def retire(scheduler: Scheduler) -> list[str]:
    ended = [sequence for sequence in scheduler.running if sequence.finish or sequence.failure]
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
