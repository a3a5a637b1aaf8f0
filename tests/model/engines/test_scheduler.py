"""Who is let in, and how much is computed: what holds for any state."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.engines.torch.scheduler import (
    CacheRequest,
    allocate_run,
    choose_admissions,
    count_fitting,
    release_run,
    split_token_budget,
)

TOKENS = st.integers(1, 60)


@given(st.lists(TOKENS, max_size=30), st.integers(60, 200), st.randoms())
def test_runs_never_overlap_and_all_room_comes_back(sizes, room, random):
    holes, taken = ((0, room),), []
    for size in sizes:
        if taken and random.random() < 0.4:
            start, length = taken.pop(random.randrange(len(taken)))
            holes = release_run(holes, start, length)
        if found := allocate_run(holes, size):
            start, holes = found
            assert all(start + size <= other or other + length <= start for other, length in taken)
            assert 0 <= start <= room - size
            taken.append((start, size))
        assert sum(length for _, length in holes) + sum(length for _, length in taken) == room
    for start, length in taken:
        holes = release_run(holes, start, length)
    assert holes == ((0, room),)


@given(st.lists(TOKENS, max_size=30), st.integers(0, 200), st.integers(0, 8), st.integers(0, 5))
def test_never_more_than_slots_and_cache_and_nothing_left_idle_but_for_those_left_behind(sizes, room, slots, patience):
    holes = ((0, room),) if room else ()
    admitted, left = choose_admissions(
        [CacheRequest(size) for size in sizes], holes, slots=slots, max_overtakes=patience
    )
    assert len(admitted) <= slots
    assert sum(sizes[index] for index in admitted) + sum(length for _, length in left) == room
    behind = [index for index in range(len(sizes)) if index not in admitted]
    if len(admitted) < slots and behind:  # work conserving: the first left behind does not fit, and no one else
        assert not allocate_run(holes_before(sizes, admitted, behind[0], holes), sizes[behind[0]])
        overtakers = [index for index in admitted if index > behind[0]]
        assert len(overtakers) == patience or not any(allocate_run(left, sizes[index]) for index in behind)


def holes_before(sizes, admitted, index, holes):
    for other in sorted(admitted):
        if other < index:
            _, holes = allocate_run(holes, sizes[other])
    return holes


@given(st.lists(TOKENS, min_size=1, max_size=60), st.integers(60, 150), st.integers(1, 6), st.integers(0, 4))
def test_everyone_is_served_and_overtaken_at_most_patience_times(sizes, room, slots, patience):
    waiting = {index: 0 for index in range(len(sizes))}
    holes, inside, served = ((0, room),), [], []
    while waiting or inside:
        order = list(waiting)
        needs = [CacheRequest(sizes[index], waiting[index]) for index in order]
        admitted, holes = choose_admissions(needs, holes, slots=slots - len(inside), max_overtakes=patience)
        for place, start in admitted.items():
            inside.append((order[place], start))
            for other in order[:place]:
                waiting[other] += other in waiting and order.index(other) not in admitted
        for place in admitted:
            assert waiting.pop(order[place]) <= patience
            served.append(order[place])
        assert inside  # an empty engine always lets someone in
        done, start = inside.pop(0)
        holes = release_run(holes, start, sizes[done])
    assert sorted(served) == list(range(len(sizes)))


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 60))
def test_decoding_rows_always_get_their_token_and_reading_stays_in_the_budget(todo, budget):
    counts = split_token_budget(todo, budget)
    assert all(count == 1 for left, count in zip(todo, counts, strict=True) if left == 1)
    read = [count for left, count in zip(todo, counts, strict=True) if left > 1]
    wanted = sum(left for left in todo if left > 1)
    assert sum(read) == min(budget, wanted)
    assert all(count <= left for left, count in zip(todo, counts, strict=True))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 100))
def test_a_vision_call_is_filled_to_the_budget_and_never_empty(patches, budget):
    count = count_fitting(patches, budget)
    assert count == 1 or sum(patches[:count]) <= budget
    assert count == len(patches) or sum(patches[: count + 1]) > budget
