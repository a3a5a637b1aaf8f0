"""What the ledger makes of deaths: who is run apart, who is given up, and that it always ends."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cluster.crash_ledger import DEATHS, HOPELESS, Ledger, Order, Worker

STEP = ("generate", "chunk")


def worker(number: int, node: str = "node") -> Worker:
    return Worker(node, number, f"log-{number}")


def test_a_step_that_nothing_interrupts_runs_all_its_rows_at_once_and_is_forgotten():
    ledger = Ledger()
    assert ledger.begin(STEP, 5, worker(1), sole=False) == Order()
    ledger.done(STEP)
    assert ledger.idle()
    assert not ledger.steps


def test_it_says_how_many_rows_are_under_way_in_each_stage():
    ledger = Ledger()
    ledger.begin(("prepare", "b"), 3, worker(1), sole=True)
    ledger.begin(STEP, 5, worker(2), sole=False)
    ledger.begin(("generate", "other"), 7, worker(2), sole=False)
    assert ledger.under_way() == {"prepare": 3, "generate": 12}
    ledger.done(STEP)
    assert ledger.under_way() == {"prepare": 3, "generate": 7}


def test_rows_of_an_interrupted_step_are_run_apart_in_sixteenths():
    ledger = Ledger()
    ledger.begin(STEP, 64, worker(1), sole=False)
    order = ledger.begin(STEP, 64, worker(2), sole=False)
    assert [len(group) for group in order.groups] == [4] * 16
    assert [row for group in order.groups for row in group] == list(range(64))


def test_the_group_that_was_interrupted_again_comes_first_and_row_by_row():
    ledger = Ledger()
    ledger.begin(STEP, 64, worker(1), sole=False)
    ledger.begin(STEP, 64, worker(2), sole=False)
    ledger.danger(STEP, (0, 1, 2, 3), worker(2))
    ledger.danger(STEP, (4, 5, 6, 7), worker(2))
    order = ledger.begin(STEP, 64, worker(3), sole=False)
    assert order.groups[:5] == ((4,), (5,), (6,), (7,), (0, 1, 2, 3))
    assert sorted(row for group in order.groups for row in group) == list(range(64))


def test_a_row_that_ends_three_processes_alone_is_given_up_with_the_last_of_them():
    ledger = Ledger()
    ledger.begin(STEP, 2, worker(0), sole=False)
    for number in range(1, DEATHS + 1):
        order = ledger.begin(STEP, 2, worker(number), sole=False)
        assert order.groups == ((0,), (1,))
        ledger.danger(STEP, (0,), worker(number))
    order = ledger.begin(STEP, 2, worker(9), sole=False)
    assert order.groups == ((1,),)
    assert order.given_up == {0: worker(3)}


def test_a_single_row_beside_other_chunks_is_not_to_blame_until_it_is_alone():
    ledger = Ledger()
    for number in range(DEATHS):
        ledger.begin(STEP, 1, worker(number), sole=False)
    ledger.begin(STEP, 1, worker(3), sole=False)
    assert not ledger.begin(STEP, 1, worker(4), sole=False).given_up


def test_a_node_that_went_away_is_nobodys_fault_but_the_third_with_the_same_chunk_is():
    ledger = Ledger(alive=lambda node: node != "spot")
    for number in range(DEATHS):
        assert ledger.begin(STEP, 8, worker(number, "spot"), sole=False) == Order()
    assert ledger.begin(STEP, 8, worker(9), sole=False).groups == tuple((row,) for row in range(8))


def test_deaths_while_no_row_is_worked_on_end_the_run_and_blame_no_row():
    ledger = Ledger()
    for number in range(DEATHS):
        ledger.begin(STEP, 8, worker(number), sole=False)
        ledger.danger(STEP, (), worker(number))
    order = ledger.begin(STEP, 8, worker(9), sole=False)
    assert "while they read or committed chunk chunk" in order.refusal
    assert order.last == worker(2)


def test_processes_that_die_one_after_another_and_get_nothing_done_end_the_run():
    ledger = Ledger()
    for number in range(HOPELESS):
        assert not ledger.begin(("generate", "a"), 8, worker(number), sole=False).refusal
        ledger.danger(("generate", "a"), (number % 8,), worker(number))
    assert f"{HOPELESS} processes" in ledger.begin(("generate", "a"), 8, worker(99), sole=False).refusal


def test_one_death_that_interrupts_three_chunks_is_one_death():
    ledger = Ledger()
    for number in range(HOPELESS - 1):
        for key in "abc":
            assert not ledger.begin(("generate", key), 8, worker(number), sole=False).refusal
            ledger.danger(("generate", key), (number % 8,), worker(number))


def test_an_actor_that_dies_three_times_while_it_starts_is_told_not_to_try_again():
    ledger = Ledger()
    for number in range(DEATHS):
        assert not ledger.starting("generate", "actor", worker(number)).refusal
        assert not ledger.starting("generate", "another", worker(number)).refusal
        ledger.ready("another")
    order = ledger.starting("generate", "actor", worker(9))
    assert "died while they started" in order.refusal
    assert order.last == worker(2)


def test_an_actor_whose_node_goes_away_while_it_starts_may_try_again_more_often():
    ledger = Ledger(alive=lambda node: node != "spot")
    for number in range(2 * DEATHS):
        assert not ledger.starting("generate", "actor", worker(number, "spot")).refusal
    assert ledger.starting("generate", "actor", worker(9)).refusal


def test_once_the_run_is_stopped_nothing_begins_and_it_is_idle_when_the_last_step_ends():
    ledger = Ledger()
    ledger.begin(STEP, 4, worker(1), sole=False)
    ledger.stop()
    assert ledger.begin(("generate", "other"), 4, worker(1), sole=False) is None
    assert not ledger.idle()
    ledger.done(STEP)
    assert ledger.idle()


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 80),
    poison=st.sets(st.integers(0, 79), max_size=4),
    strays=st.integers(0, 6),
    seed=st.integers(0, 2**32),
)
def test_whatever_dies_only_poison_is_given_up_and_it_ends(rows, poison, strays, seed):
    """A process of three threads, where poison ends the process and a few deaths come from outside."""
    chance, ledger, done, deaths = random.Random(seed), Ledger(), {}, Counter()
    poison = {row for row in poison if row < rows}
    for process in range(200):
        if len(done) == 3:
            break
        fatal = False
        for key in chance.sample("abc", 3):
            if key in done or fatal:
                continue
            order = ledger.begin(("generate", key), rows, worker(process), sole=False)
            if order.refusal:  # nothing but poison, one row after the other
                assert len(poison) * DEATHS >= HOPELESS - 2
                return
            bad = poison if key == "a" else set()
            apart = bool(order.groups or order.given_up)
            for group in order.groups if apart else (tuple(range(rows)),):
                if apart:
                    ledger.danger(("generate", key), group, worker(process))
                stray = strays > deaths["stray"] and chance.random() < 0.3 and len(group) > 1
                deaths["stray"] += stray
                if fatal := bool(bad & set(group)) or stray:
                    break
            else:
                ledger.done(("generate", key))
                done[key] = set(order.given_up)
    assert done == {"a": poison, "b": set(), "c": set()}


@pytest.mark.parametrize(("size", "most"), [(256, 5), (16, 4)])
def test_one_poison_row_costs_so_many_processes(size, most):
    ledger, deaths = Ledger(), 0
    while True:
        order = ledger.begin(STEP, size, worker(deaths), sole=False)
        if order.given_up:
            break
        for group in order.groups:
            ledger.danger(STEP, group, worker(deaths))
            if size - 1 in group:
                break
        deaths += 1
    assert set(order.given_up) == {size - 1}
    assert deaths == most
