"""Admission and token budgets: properties that hold in any state."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.engines.torch.cache_runs import allocate_run, release_run
from pipeline.model.engines.torch.scheduler import choose_admissions, count_fitting, split_token_budget

TOKENS = st.integers(1, 60)


@given(st.lists(TOKENS, max_size=30), st.integers(60, 200), st.randoms())
def test_runs_never_overlap_and_the_whole_cache_comes_back(sizes, kv_tokens, random):
    free_runs, allocated = ((0, kv_tokens),), []
    for size in sizes:
        if allocated and random.random() < 0.4:
            start, length = allocated.pop(random.randrange(len(allocated)))
            free_runs = release_run(free_runs, start, length)
        if allocation := allocate_run(free_runs, size):
            start, free_runs = allocation
            assert all(start + size <= other or other + length <= start for other, length in allocated)
            assert 0 <= start <= kv_tokens - size
            allocated.append((start, size))
        assert sum(length for _, length in free_runs) + sum(length for _, length in allocated) == kv_tokens
    for start, length in allocated:
        free_runs = release_run(free_runs, start, length)
    assert free_runs == ((0, kv_tokens),)


@given(st.lists(TOKENS, max_size=30), st.integers(0, 200), st.integers(0, 8), st.integers(0, 5))
def test_admissions_fit_slots_and_cache_and_leave_nothing_idle_that_may_be_used(sizes, kv_tokens, slots, max_overtakes):
    free_runs = ((0, kv_tokens),) if kv_tokens else ()
    admitted, left, _ = choose_admissions([(size, 0) for size in sizes], free_runs, slots, max_overtakes)
    assert len(admitted) <= slots
    assert sum(sizes[index] for index in admitted) + sum(length for _, length in left) == kv_tokens
    passed_over = [index for index in range(len(sizes)) if index not in admitted]
    if len(admitted) < slots and passed_over:  # the first passed over does not fit, and no other may or can be admitted
        assert not allocate_run(free_runs_before(sizes, admitted, passed_over[0], free_runs), sizes[passed_over[0]])
        overtakers = [index for index in admitted if index > passed_over[0]]
        assert len(overtakers) == max_overtakes or not any(allocate_run(left, sizes[index]) for index in passed_over)


def free_runs_before(sizes, admitted, index, free_runs):
    for other in sorted(admitted):
        if other < index:
            _, free_runs = allocate_run(free_runs, sizes[other])
    return free_runs


@given(st.lists(TOKENS, min_size=1, max_size=60), st.integers(60, 150), st.integers(1, 6), st.integers(0, 4))
def test_every_request_is_served_and_overtaken_at_most_max_overtakes_times(sizes, kv_tokens, slots, max_overtakes):
    waiting = {index: 0 for index in range(len(sizes))}
    free_runs, running, served = ((0, kv_tokens),), [], []
    while waiting or running:
        order = list(waiting)
        needs = [(sizes[index], waiting[index]) for index in order]
        admitted, free_runs, _ = choose_admissions(needs, free_runs, slots - len(running), max_overtakes)
        for place, start in admitted.items():
            running.append((order[place], start))
            for other in order[:place]:
                waiting[other] += other in waiting and order.index(other) not in admitted
        for place in admitted:
            assert waiting.pop(order[place]) <= max_overtakes
            served.append(order[place])
        assert running  # an empty engine always admits one
        done, start = running.pop(0)
        free_runs = release_run(free_runs, start, sizes[done])
    assert sorted(served) == list(range(len(sizes)))


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 60))
def test_decode_always_gets_its_token_and_prefill_stays_in_the_budget(pending, budget):
    counts = split_token_budget(pending, budget)
    assert all(count == 1 for left, count in zip(pending, counts, strict=True) if left == 1)
    prefill = [count for left, count in zip(pending, counts, strict=True) if left > 1]
    wanted = sum(left for left in pending if left > 1)
    assert sum(prefill) == min(budget, wanted)
    assert all(count <= left for left, count in zip(pending, counts, strict=True))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 100))
def test_a_vision_call_is_filled_to_the_budget_and_never_empty(patches, budget):
    count = count_fitting(patches, budget)
    assert count == 1 or sum(patches[:count]) <= budget
    assert count == len(patches) or sum(patches[: count + 1]) > budget
