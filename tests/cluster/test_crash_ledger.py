"""What the ledger makes of deaths: who is run apart, who is given up, and that it always ends."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cluster.crash_ledger import (
    MAX_CONSECUTIVE_CRASHES,
    MAX_CRASHES,
    CrashLedger,
    StepInstructions,
    WorkerProcess,
)

STEP = ("generate", "chunk")


def worker(number: int, node: str = "node") -> WorkerProcess:
    return WorkerProcess(node, number, f"log-{number}")


def test_a_step_that_nothing_interrupts_runs_all_its_rows_at_once_and_is_forgotten():
    ledger = CrashLedger()
    assert ledger.begin_step(STEP, 5, worker(1), exclusive=False) == StepInstructions()
    ledger.finish_step(STEP)
    assert ledger.is_idle()
    assert not ledger.open_steps


def test_it_says_how_many_rows_are_under_way_in_each_stage():
    ledger = CrashLedger()
    ledger.begin_step(("prepare", "b"), 3, worker(1), exclusive=True)
    ledger.begin_step(STEP, 5, worker(2), exclusive=False)
    ledger.begin_step(("generate", "other"), 7, worker(2), exclusive=False)
    assert ledger.count_rows_in_flight() == {"prepare": 3, "generate": 12}
    ledger.finish_step(STEP)
    assert ledger.count_rows_in_flight() == {"prepare": 3, "generate": 7}


def test_rows_of_an_interrupted_step_are_run_apart_in_sixteenths():
    ledger = CrashLedger()
    ledger.begin_step(STEP, 64, worker(1), exclusive=False)
    order = ledger.begin_step(STEP, 64, worker(2), exclusive=False)
    assert [len(group) for group in order.row_groups] == [4] * 16
    assert [row for group in order.row_groups for row in group] == list(range(64))


def test_the_group_that_was_interrupted_again_comes_first_and_row_by_row():
    ledger = CrashLedger()
    ledger.begin_step(STEP, 64, worker(1), exclusive=False)
    ledger.begin_step(STEP, 64, worker(2), exclusive=False)
    ledger.set_active_rows(STEP, (0, 1, 2, 3), worker(2))
    ledger.set_active_rows(STEP, (4, 5, 6, 7), worker(2))
    order = ledger.begin_step(STEP, 64, worker(3), exclusive=False)
    assert order.row_groups[:5] == ((4,), (5,), (6,), (7,), (0, 1, 2, 3))
    assert sorted(row for group in order.row_groups for row in group) == list(range(64))


def test_a_row_that_ends_three_processes_alone_is_given_up_with_the_last_of_them():
    ledger = CrashLedger()
    ledger.begin_step(STEP, 2, worker(0), exclusive=False)
    for number in range(1, MAX_CRASHES + 1):
        order = ledger.begin_step(STEP, 2, worker(number), exclusive=False)
        assert order.row_groups == ((0,), (1,))
        ledger.set_active_rows(STEP, (0,), worker(number))
    order = ledger.begin_step(STEP, 2, worker(9), exclusive=False)
    assert order.row_groups == ((1,),)
    assert order.abandoned_rows == {0: worker(3)}


def test_a_single_row_beside_other_chunks_is_not_to_blame_until_it_is_alone():
    ledger = CrashLedger()
    for number in range(MAX_CRASHES):
        ledger.begin_step(STEP, 1, worker(number), exclusive=False)
    ledger.begin_step(STEP, 1, worker(3), exclusive=False)
    assert not ledger.begin_step(STEP, 1, worker(4), exclusive=False).abandoned_rows


def test_a_node_that_went_away_is_nobodys_fault_but_the_third_with_the_same_chunk_is():
    ledger = CrashLedger(is_node_alive=lambda node: node != "spot")
    for number in range(MAX_CRASHES):
        assert ledger.begin_step(STEP, 8, worker(number, "spot"), exclusive=False) == StepInstructions()
    assert ledger.begin_step(STEP, 8, worker(9), exclusive=False).row_groups == tuple((row,) for row in range(8))


def test_deaths_while_no_row_is_worked_on_end_the_run_and_blame_no_row():
    ledger = CrashLedger()
    for number in range(MAX_CRASHES):
        ledger.begin_step(STEP, 8, worker(number), exclusive=False)
        ledger.set_active_rows(STEP, (), worker(number))
    order = ledger.begin_step(STEP, 8, worker(9), exclusive=False)
    assert "while they read or committed chunk chunk" in order.stop_reason
    assert order.last_process == worker(2)


def test_processes_that_die_one_after_another_and_get_nothing_done_end_the_run():
    ledger = CrashLedger()
    for number in range(MAX_CONSECUTIVE_CRASHES):
        assert not ledger.begin_step(("generate", "a"), 8, worker(number), exclusive=False).stop_reason
        ledger.set_active_rows(("generate", "a"), (number % 8,), worker(number))
    assert (
        f"{MAX_CONSECUTIVE_CRASHES} processes"
        in ledger.begin_step(("generate", "a"), 8, worker(99), exclusive=False).stop_reason
    )


def test_one_death_that_interrupts_three_chunks_is_one_death():
    ledger = CrashLedger()
    for number in range(MAX_CONSECUTIVE_CRASHES - 1):
        for key in "abc":
            assert not ledger.begin_step(("generate", key), 8, worker(number), exclusive=False).stop_reason
            ledger.set_active_rows(("generate", key), (number % 8,), worker(number))


def test_an_actor_that_dies_three_times_while_it_starts_is_told_not_to_try_again():
    ledger = CrashLedger()
    for number in range(MAX_CRASHES):
        assert not ledger.begin_start("generate", "actor", worker(number)).stop_reason
        assert not ledger.begin_start("generate", "another", worker(number)).stop_reason
        ledger.finish_start("another")
    order = ledger.begin_start("generate", "actor", worker(9))
    assert "died while they started" in order.stop_reason
    assert order.last_process == worker(2)


def test_an_actor_whose_node_goes_away_while_it_starts_may_try_again_more_often():
    ledger = CrashLedger(is_node_alive=lambda node: node != "spot")
    for number in range(2 * MAX_CRASHES):
        assert not ledger.begin_start("generate", "actor", worker(number, "spot")).stop_reason
    assert ledger.begin_start("generate", "actor", worker(9)).stop_reason


def test_once_the_run_is_stopped_nothing_begins_and_it_is_idle_when_the_last_step_ends():
    ledger = CrashLedger()
    ledger.begin_step(STEP, 4, worker(1), exclusive=False)
    ledger.stop_steps()
    assert ledger.begin_step(("generate", "other"), 4, worker(1), exclusive=False) is None
    assert not ledger.is_idle()
    ledger.finish_step(STEP)
    assert ledger.is_idle()


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 80),
    poison=st.sets(st.integers(0, 79), max_size=4),
    strays=st.integers(0, 6),
    seed=st.integers(0, 2**32),
)
def test_whatever_dies_only_poison_is_given_up_and_it_ends(rows, poison, strays, seed):
    """A process of three threads, where poison ends the process and a few deaths come from outside."""
    chance, ledger, done, deaths = random.Random(seed), CrashLedger(), {}, Counter()
    poison = {row for row in poison if row < rows}
    for process in range(200):
        if len(done) == 3:
            break
        fatal = False
        for key in chance.sample("abc", 3):
            if key in done or fatal:
                continue
            order = ledger.begin_step(("generate", key), rows, worker(process), exclusive=False)
            if order.stop_reason:  # nothing but poison, one row after the other
                assert len(poison) * MAX_CRASHES >= MAX_CONSECUTIVE_CRASHES - 2
                return
            bad = poison if key == "a" else set()
            apart = bool(order.row_groups or order.abandoned_rows)
            for group in order.row_groups if apart else (tuple(range(rows)),):
                if apart:
                    ledger.set_active_rows(("generate", key), group, worker(process))
                stray = strays > deaths["stray"] and chance.random() < 0.3 and len(group) > 1
                deaths["stray"] += stray
                if fatal := bool(bad & set(group)) or stray:
                    break
            else:
                ledger.finish_step(("generate", key))
                done[key] = set(order.abandoned_rows)
    assert done == {"a": poison, "b": set(), "c": set()}


@pytest.mark.parametrize(("size", "most"), [(256, 5), (16, 4)])
def test_one_poison_row_costs_so_many_processes(size, most):
    ledger, deaths = CrashLedger(), 0
    while True:
        order = ledger.begin_step(STEP, size, worker(deaths), exclusive=False)
        if order.abandoned_rows:
            break
        for group in order.row_groups:
            ledger.set_active_rows(STEP, group, worker(deaths))
            if size - 1 in group:
                break
        deaths += 1
    assert set(order.abandoned_rows) == {size - 1}
    assert deaths == most
