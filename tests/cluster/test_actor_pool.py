"""Which actor gets the next task, when a pool grows, and when a run stops because no actor is left."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cluster import actor_pool
from pipeline.cluster.actor_pool import MAX_GROWTH, ActorPool, Parked, count_new_actors
from pipeline.errors import StoppedError


def open_pool(size: int, max_size: int | None = None, tasks_per_actor: int = 2, *, ready: bool = True) -> ActorPool:
    pool = ActorPool(lambda actor: f"handle {id(actor)}", max_size, tasks_per_actor)
    pool.add_actors(size)
    if ready:
        set_all_ready(pool)
    return pool


def set_all_ready(pool: ActorPool) -> None:
    for actor in [*pool.starting]:
        pool.set_ready(actor)


def give_task(pool: ActorPool):
    actor = pool.pick_actor()
    if actor:
        pool.change_load(actor, 1, 5)
    return actor


def park(pool: ActorPool, actor, reason: str = "its GPU is broken") -> bool:
    return pool.park(actor, Parked(reason, StoppedError(f"stopped: {reason}")))


def test_the_actor_with_the_fewest_tasks_gets_the_next_one_until_all_have_enough():
    pool = open_pool(3)
    first = [give_task(pool) for _ in range(3)]
    assert len({*first}) == 3
    pool.change_load(first[1], -1, -5)
    assert give_task(pool) is first[1]
    assert {give_task(pool) for _ in range(3)} == {*first}
    assert give_task(pool) is None
    assert (pool.tasks_in_flight, pool.rows_in_flight, pool.count_free_slots()) == (6, 30, 0)


def test_an_actor_that_starts_gets_no_task_but_room_is_counted_for_it():
    pool = open_pool(1, ready=False)
    assert (pool.pick_actor(), pool.count_free_slots()) == (None, 2)


def test_a_full_pool_of_unknown_work_doubles_up_to_its_largest_size():
    pool, sizes = open_pool(1, 5), []
    for _ in range(6):
        while give_task(pool):
            pass
        pool.grow(1000)
        pool.grow(1000)
        set_all_ready(pool)
        sizes.append(pool.ready_count)
    assert sizes == [2, 4, 5, 5, 5, 5]


def test_a_pool_does_not_grow_while_it_has_room_or_beyond_its_work():
    pool = open_pool(4)
    pool.grow(1000)
    while give_task(pool):
        pass
    pool.grow(3)
    assert len(pool.starting) == 2


def test_a_parked_actor_keeps_its_place_and_gets_no_task():
    pool = open_pool(2, 2)
    bad = give_task(pool)
    assert [park(pool, bad), park(pool, bad)] == [True, False]
    pool.raise_if_unusable()
    pool.change_load(bad, -1, -5)
    assert bad not in {give_task(pool), give_task(pool)}
    pool.grow(1000)
    assert not pool.starting
    assert bad.handle


def test_the_run_stops_when_every_actor_is_parked():
    pool = open_pool(3)
    for reason in ("first", "second"):
        park(pool, pool.pick_actor(), reason)
        pool.raise_if_unusable()
    park(pool, pool.pick_actor(), "third")
    with pytest.raises(StoppedError, match=r"^stopped: third$"):
        pool.raise_if_unusable()


def test_actors_that_wait_for_a_node_are_waited_for_but_not_for_ever(monkeypatch):
    pool = open_pool(2, ready=False)
    park(pool, next(iter(pool.starting)))
    pool.raise_if_unusable()
    monkeypatch.setattr(actor_pool, "PARKED_WAIT_S", -1.0)
    with pytest.raises(StoppedError, match="its GPU is broken"):
        pool.raise_if_unusable()
    set_all_ready(pool)
    pool.raise_if_unusable()


def test_an_actor_is_started_again_for_a_chunk_that_comes_back():
    pool = open_pool(2, 2)
    bad = give_task(pool)
    assert pool.release_idle() == []
    park(pool, bad)
    pool.raise_if_unusable()
    pool.grow(1)
    assert len(pool.starting) == 1
    park(pool, next(iter(pool.starting)))
    with pytest.raises(StoppedError):
        pool.raise_if_unusable()


def test_idle_actors_are_given_up_and_those_that_start_have_to_be_ended():
    pool = open_pool(3, tasks_per_actor=1)
    busy = give_task(pool)
    pool.add_actors(1)
    (starting,) = [actor.handle for actor in pool.starting]
    assert pool.release_idle() == [starting]
    assert (pool.ready_count, pool.pick_actor(), pool.starting) == (1, None, {})
    assert pool.release_all() == [f"handle {id(busy)}"]


def test_a_pool_whose_work_is_known_grows_at_once_to_what_pays():
    pool = open_pool(1, 8)
    give_task(pool), give_task(pool)
    pool.start_s = 5.0
    pool.grow(1000, 5.0 * 2.9)
    assert not pool.starting, "a second actor would load longer than it works"
    pool.grow(1000, 500.0)
    pool.grow(1000, 500.0)
    assert len(pool.starting) == 7


def test_the_time_that_an_actor_takes_to_start_is_known_when_it_has_started(monkeypatch):
    pool = open_pool(1, ready=False)
    now = time.monotonic()
    monkeypatch.setattr(actor_pool.time, "monotonic", lambda: now + 100)
    set_all_ready(pool)
    assert 100 <= pool.start_s < 200


SECONDS = st.floats(0.01, 1e6)


def count_seconds(ready: int, loading: int, work_s: float, start_s: float) -> float:
    """Until the work is done, if all actors are busy from their start on."""
    return (work_s + loading * start_s) / (ready + loading)


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(0, 500), st.floats(0.1, 20.0), SECONDS)
def test_each_new_actor_works_as_long_as_it_loads_and_one_more_would_not(ready, starting, rounds, start_s):
    work_s = rounds * (ready + starting) * start_s
    new = count_new_actors(ready, starting, work_s, start_s)
    least_s = 2 * start_s * (1 + 1e-9)
    if new:
        assert count_seconds(ready, starting + new, work_s, start_s) >= 2 * start_s * (1 - 1e-9)
        assert count_seconds(ready, starting + new, work_s, start_s) < count_seconds(ready, starting, work_s, start_s)
    if starting + new < MAX_GROWTH * ready:
        assert count_seconds(ready, starting + new + 1, work_s, start_s) < least_s
    assert starting + new <= max(starting, MAX_GROWTH * ready)
    assert count_new_actors(ready, starting + new, work_s, start_s) == 0, "asked again, it wants no more"


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(0, 500), st.floats(0.1, 20.0), SECONDS)
def test_more_work_never_wants_fewer_actors_and_longer_loading_never_more(ready, starting, rounds, start_s):
    work_s = rounds * (ready + starting) * start_s
    new = count_new_actors(ready, starting, work_s, start_s)
    assert count_new_actors(ready, starting, 2 * work_s, start_s) >= new >= 0
    assert count_new_actors(ready, starting, work_s, 2 * start_s) <= new


@settings(deadline=None)
@given(SECONDS, SECONDS)
def test_a_pool_without_actors_always_gets_one(work_s, start_s):
    assert count_new_actors(0, 0, work_s, start_s) == 1


@pytest.mark.parametrize(("largest", "waves"), [(8, 1), (9, 1), (64, 2), (1000, 4)])
def test_few_waves_of_starts_fill_a_pool_that_has_much_to_do(largest, waves):
    pool, count = open_pool(1, largest), 0
    pool.start_s = 60.0
    while pool.ready_count < largest:
        while give_task(pool):
            pass
        pool.grow(10**6, 1e9)
        set_all_ready(pool)
        pool.start_s, count = 60.0, count + 1
    assert count == waves
