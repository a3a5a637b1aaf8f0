"""How the ledger reacts to crashes: rows that are isolated, rows that are abandoned, and the end of all retries."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cluster.crash_ledger import (
    COMMIT_STAGE,
    MAX_CONSECUTIVE_CRASHES,
    MAX_CRASHES,
    CrashLedger,
    StepInstructions,
    WorkerProcess,
)

STEP = ("generate", "chunk")


def build_process(number: int, node: str = "node", actor: str = "actor") -> WorkerProcess:
    return WorkerProcess(node, number, f"log-{number}", actor)


def begin_step(ledger, step_key, row_count, process, exclusive) -> StepInstructions | None:
    """Begin a task with one chunk."""
    instructions = ledger.begin_steps({step_key: row_count}, process, exclusive)
    return instructions[0] if instructions else None


def test_a_step_without_a_crash_runs_all_rows_at_once_and_is_forgotten():
    ledger = CrashLedger()
    assert begin_step(ledger, STEP, 5, build_process(1), exclusive=False) == StepInstructions()
    ledger.finish_steps([STEP])
    assert not ledger.open_steps


def test_after_a_crash_the_rows_run_in_sixteen_groups():
    ledger = CrashLedger()
    begin_step(ledger, STEP, 64, build_process(1), exclusive=False)
    instructions = begin_step(ledger, STEP, 64, build_process(2), exclusive=False)
    assert [len(group) for group in instructions.row_groups] == [4] * 16
    assert [row for group in instructions.row_groups for row in group] == list(range(64))


def test_a_group_that_crashes_again_comes_first_and_row_by_row():
    ledger = CrashLedger()
    begin_step(ledger, STEP, 64, build_process(1), exclusive=False)
    begin_step(ledger, STEP, 64, build_process(2), exclusive=False)
    ledger.set_active_rows(STEP, (0, 1, 2, 3), build_process(2))
    ledger.set_active_rows(STEP, (4, 5, 6, 7), build_process(2))
    instructions = begin_step(ledger, STEP, 64, build_process(3), exclusive=False)
    assert instructions.row_groups[:5] == ((4,), (5,), (6,), (7,), (0, 1, 2, 3))
    assert sorted(row for group in instructions.row_groups for row in group) == list(range(64))


def test_a_row_that_crashes_three_processes_alone_is_abandoned():
    ledger = CrashLedger()
    begin_step(ledger, STEP, 2, build_process(0), exclusive=False)
    for number in range(1, MAX_CRASHES + 1):
        instructions = begin_step(ledger, STEP, 2, build_process(number), exclusive=False)
        assert instructions.row_groups == ((0,), (1,))
        ledger.set_active_rows(STEP, (0,), build_process(number))
    instructions = begin_step(ledger, STEP, 2, build_process(9), exclusive=False)
    assert instructions.row_groups == ((1,),)
    assert instructions.abandoned_rows == {0: build_process(3)}


def test_a_row_beside_other_chunks_is_not_charged_until_it_is_alone():
    ledger = CrashLedger()
    for number in range(MAX_CRASHES):
        begin_step(ledger, STEP, 1, build_process(number), exclusive=False)
    begin_step(ledger, STEP, 1, build_process(3), exclusive=False)
    assert not begin_step(ledger, STEP, 1, build_process(4), exclusive=False).abandoned_rows


def test_a_lost_node_blames_no_row_until_the_same_chunk_has_lost_three():
    ledger = CrashLedger(is_node_alive=lambda node: node != "spot")
    for number in range(MAX_CRASHES):
        assert begin_step(ledger, STEP, 8, build_process(number, "spot"), exclusive=False) == StepInstructions()
    instructions = begin_step(ledger, STEP, 8, build_process(9), exclusive=False)
    assert instructions.row_groups == tuple((row,) for row in range(8))


def test_crashes_outside_the_rows_of_a_chunk_stop_the_run_and_blame_no_row():
    ledger = CrashLedger()
    for number in range(MAX_CRASHES):
        begin_step(ledger, STEP, 8, build_process(number), exclusive=False)
        ledger.set_active_rows(STEP, (), build_process(number))
    instructions = begin_step(ledger, STEP, 8, build_process(9), exclusive=False)
    assert "while they read or committed chunk chunk" in instructions.stop_reason
    assert instructions.last_process == build_process(2)


def test_consecutive_crashes_without_a_surviving_group_park_the_actor():
    ledger = CrashLedger()
    for number in range(MAX_CONSECUTIVE_CRASHES):
        assert not begin_step(ledger, ("generate", "a"), 8, build_process(number), exclusive=False).parked_reason
        ledger.set_active_rows(("generate", "a"), (number % 8,), build_process(number))
    instructions = begin_step(ledger, ("generate", "a"), 8, build_process(99), exclusive=False)
    assert f"{MAX_CONSECUTIVE_CRASHES} processes" in instructions.parked_reason
    assert instructions.last_process == build_process(MAX_CONSECUTIVE_CRASHES - 1)


def test_a_crash_that_interrupts_three_chunks_counts_once():
    ledger = CrashLedger()
    for number in range(MAX_CONSECUTIVE_CRASHES - 1):
        for key in "abc":
            assert not begin_step(ledger, ("generate", key), 8, build_process(number), exclusive=False).parked_reason
            ledger.set_active_rows(("generate", key), (number % 8,), build_process(number))


def test_an_actor_that_crashes_three_times_while_it_starts_is_parked():
    ledger = CrashLedger()
    for number in range(MAX_CRASHES):
        assert ledger.begin_start("generate", build_process(number)) == StepInstructions()
    instructions = ledger.begin_start("generate", build_process(9))
    assert "died while they started" in instructions.parked_reason
    assert instructions.last_process == build_process(2)


def test_an_actor_that_is_ready_starts_to_count_anew():
    ledger = CrashLedger()
    for number in range(2 * MAX_CRASHES):
        assert ledger.begin_start("generate", build_process(number)) == StepInstructions()
        ledger.finish_start("actor")


def test_an_actor_that_loses_its_node_while_it_starts_gets_more_attempts():
    ledger = CrashLedger(is_node_alive=lambda node: node != "spot")
    for number in range(2 * MAX_CRASHES):
        assert ledger.begin_start("generate", build_process(number, "spot")) == StepInstructions()
    assert ledger.begin_start("generate", build_process(9)).parked_reason


def test_a_bad_node_that_dies_at_the_first_chunks_is_parked_and_no_row_is_blamed():
    ledger, good = CrashLedger(), build_process(0, "good", "good")
    for number in range(MAX_CONSECUTIVE_CRASHES):
        instructions = begin_step(ledger, STEP, 8, build_process(number, "bad", "bad"), exclusive=False)
        assert (instructions.stop_reason, instructions.parked_reason) == (None, None)
        ledger.set_active_rows(STEP, (number % 8,), build_process(number, "bad", "bad"))
    instructions = begin_step(ledger, STEP, 8, build_process(99, "bad", "bad"), exclusive=False)
    assert "finished nothing in between" in instructions.parked_reason
    assert not instructions.row_groups
    instructions = begin_step(ledger, STEP, 8, good, exclusive=False)
    assert (instructions.parked_reason, instructions.abandoned_rows) == (None, {})


def test_a_crash_makes_suspects_of_all_chunks_of_a_task_and_charges_no_row():
    ledger = CrashLedger()
    task = {("prepare", "a"): 1, ("prepare", "b"): 32}
    assert ledger.begin_steps(task, build_process(1), exclusive=True) == [StepInstructions()] * 2
    first, second = ledger.begin_steps(task, build_process(2), exclusive=True)
    assert first.row_groups == ((0,),)
    assert [len(group) for group in second.row_groups] == [2] * 16
    assert not any(state.crash_counts for state in ledger.open_steps.values())


def test_a_crash_makes_no_suspects_of_chunks_that_have_finished():
    ledger = CrashLedger()
    task = {("prepare", "a"): 1, ("prepare", "b"): 32}
    ledger.begin_steps(task, build_process(1), exclusive=True)
    ledger.finish_steps([("prepare", "a")])
    first, second = ledger.begin_steps(task, build_process(2), exclusive=True)
    assert (first.is_isolating, second.is_isolating) == (False, True)


def test_an_actor_that_is_parked_begins_no_chunk_of_a_task():
    ledger = CrashLedger()
    for number in range(MAX_CONSECUTIVE_CRASHES):
        begin_step(ledger, STEP, 8, build_process(number), exclusive=False)
        ledger.set_active_rows(STEP, (number % 8,), build_process(number))
    (parked,) = ledger.begin_steps({("generate", "new"): 4, STEP: 8}, build_process(99), exclusive=False)
    assert parked.parked_reason
    assert not any(state.process for state in ledger.open_steps.values())


def test_a_stopping_ledger_begins_only_commits_of_what_is_answered():
    ledger = CrashLedger()
    begin_step(ledger, STEP, 4, build_process(1), exclusive=False)
    ledger.stop_steps()
    assert begin_step(ledger, ("generate", "other"), 4, build_process(1), exclusive=False) is None
    assert [*ledger.open_steps] == [STEP]
    assert begin_step(ledger, (COMMIT_STAGE, "other"), 1, build_process(1), exclusive=False) == StepInstructions()


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 80),
    crashing=st.sets(st.integers(0, 79), max_size=4),
    max_kills=st.integers(0, 6),
    seed=st.integers(0, 2**32),
)
def test_only_rows_that_crash_are_abandoned_and_retries_end(rows, crashing, max_kills, seed):
    """A process of three threads: some rows crash it, and it is killed from outside a few times."""
    rng, ledger, done, crashes = random.Random(seed), CrashLedger(), {}, Counter()
    crashing = {row for row in crashing if row < rows}
    for process in range(200):
        if len(done) == 3:
            break
        has_crashed = False
        for key in rng.sample("abc", 3):
            if key in done or has_crashed:
                continue
            instructions = begin_step(ledger, ("generate", key), rows, build_process(process), exclusive=False)
            if instructions.parked_reason:  # one crashing row after the other
                assert len(crashing) * MAX_CRASHES >= MAX_CONSECUTIVE_CRASHES - 2
                return
            crashing_here = crashing if key == "a" else set()
            isolated = bool(instructions.row_groups or instructions.abandoned_rows)
            for group in instructions.row_groups if isolated else (tuple(range(rows)),):
                if isolated:
                    ledger.set_active_rows(("generate", key), group, build_process(process))
                is_killed = max_kills > crashes["kill"] and rng.random() < 0.3 and len(group) > 1
                crashes["kill"] += is_killed
                if has_crashed := bool(crashing_here & set(group)) or is_killed:
                    break
            else:
                ledger.finish_steps([("generate", key)])
                done[key] = set(instructions.abandoned_rows)
    assert done == {"a": crashing, "b": set(), "c": set()}


@pytest.mark.parametrize(("size", "process_count"), [(256, 5), (16, 4)])
def test_the_number_of_processes_that_one_crashing_row_costs(size, process_count):
    ledger, crashes = CrashLedger(), 0
    while True:
        instructions = begin_step(ledger, STEP, size, build_process(crashes), exclusive=False)
        if instructions.abandoned_rows:
            break
        for group in instructions.row_groups:
            ledger.set_active_rows(STEP, group, build_process(crashes))
            if size - 1 in group:
                break
        crashes += 1
    assert set(instructions.abandoned_rows) == {size - 1}
    assert crashes == process_count
