"""Who runs with whom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.local.decoding.job import Job, Options
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.plan import MAX_SPREAD, Soon, Waiting, batches, begun, ends_s
from backends.local.scheduling.prefix_cache import Prefix

COSTS = Costs(0.011, 0.08, 0.0004, 73_728, 2)
TOKENS = 48


def waiting(lengths, kind="greedy", **other):
    return [
        Waiting(Job(number, [0] * length, Options(TOKENS, frozenset())), kind, length=length, tokens=TOKENS, **other)
        for number, length in enumerate(lengths)
    ]


def planned(jobs, free, costs=COSTS):
    return [[each.length for each in batch] for batch in batches(jobs, free, costs)]


def test_equals_are_cut_in_equal_parts():
    """As many as workers are free."""
    assert planned(waiting([64] * 16), 2) == [[64] * 8] * 2
    assert [len(batch) for batch in planned(waiting([64] * 16), 3)] == [6, 6, 4]
    assert planned(waiting([64] * 3), 8) == [[64]] * 3


def test_one_batch_takes_all_when_one_worker_is_free():
    assert planned(waiting([64] * 16), 1) == [[64] * 16]


def test_neighbours_in_length_stay_together():
    """Whatever the order in which they came."""
    lengths = [80, 40, 60, 50, 44, 76, 72, 48]
    first, second = planned(waiting(lengths), 2)

    assert first + second == sorted(lengths)
    assert 3 <= len(first) <= 5


def test_a_long_prompt_is_not_put_among_short_ones():
    """All of them would wait for every token of it."""
    assert planned(waiting([60, 100, 300, 800]), 1) == [[60, 100]]
    assert planned(waiting([800, 60, 100, 300]), 1) == [[800]]
    assert planned(waiting([60, 100, 300, 800]), 4) == [[60], [100], [300], [800]]
    assert planned(waiting([60, 100, 300, 800]), 3) == [[60, 100], [300], [800]]


def test_whoever_came_first_leads():
    """So nobody waits for ever."""
    assert planned(waiting([64, 500, 64, 64]), 1)[0][0] == 64
    assert planned(waiting([500, 64, 64, 64]), 1) == [[500]]


def test_those_unlike_each_other_never_share():
    """Other sampling, another prefix; and some are always alone."""
    greedy, hot = waiting([64] * 2), waiting([64] * 2, "hot")
    kept = waiting([64] * 2, prefix=Prefix("key", b"digest", 100))
    alone = waiting([64] * 2, None)
    mixed = [each for pair in zip(greedy, hot, kept, alone, strict=True) for each in pair]

    assert [[each.kind for each in batch] for batch in batches(mixed, 8, COSTS)].count(["greedy"]) == 4
    assert [[mixed.index(each) for each in batch] for batch in batches(mixed, 5, COSTS)] == [
        [0, 4],
        [1, 5],
        [2, 6],
        [3],
        [7],
    ]


def test_a_batch_has_a_limit():
    """The others go with the next worker, or wait."""
    narrow = Costs(0.011, 5.0, 0.0, 0, 2)  # each row costs as much as five steps: at most 8, and hardly ever worth it
    wide = Costs(0.011, 0.15, 0.0004, 0, 2)

    assert planned(waiting([64] * 30), 1, narrow) == [[64]]
    assert planned(waiting([64] * 50), 2, wide) == [[64] * wide.max_rows] * 2


def test_who_has_most_to_do_is_helped():
    """Three workers, two kinds: the kind of which there is more gets two."""
    jobs = [*waiting([64] * 2, "hot"), *waiting([64] * 12)]

    assert planned(jobs, 3) == [[64] * 2, [64] * 6, [64] * 6]


def lengths_of(groups):
    return [[each.length for each in group] for group in groups]


def test_some_are_kept_back_for_a_worker_that_is_free_soon():
    """With those whom it answers now, who will ask again; the first one to come begins at once."""
    queue, others = waiting([*range(40, 64, 3), 64, 67, 70, 73, 76]), waiting([79, 82, 85])

    assert lengths_of(begun(queue, 1, COSTS, [Soon(0.1, others)])) == [[*range(40, 64, 3)]]
    assert lengths_of(begun(queue[::-1], 1, COSTS, [Soon(0.1, others)])) == [[64, 67, 70, 73, 76]]
    assert lengths_of(begun(queue, 1, COSTS, [])) == [[*range(40, 64, 3), 64, 67, 70, 73, 76]]


def test_nobody_is_kept_back_for_a_worker_that_has_much_to_do():
    """Nor for one that has as many of its own."""
    assert lengths_of(begun(waiting([64] * 8), 1, COSTS, [Soon(9.0, waiting([64]))])) == [[64] * 8]
    assert lengths_of(begun(waiting([64] * 8), 1, COSTS, [Soon(0.1, waiting([64] * 8))])) == [[64] * 8]
    assert lengths_of(begun(waiting([64] * 8), 1, COSTS, [Soon(0.01, [])])) == [[64] * 4]


def test_answers_are_quicker_when_others_have_ended():
    """A row has its answer after its own steps."""
    rows = waiting([100, 100])
    rows[1].tokens = 10
    reading_s, both_s, one_s = 200 * 0.0004, COSTS.rows_step_s(2), COSTS.rows_step_s(1)

    assert ends_s(rows, COSTS) == pytest.approx([reading_s + 10 * both_s, reading_s + 10 * both_s + 38 * one_s])


@given(
    st.lists(st.tuples(st.integers(2, 400), st.sampled_from(["greedy", "hot", None])), max_size=20),
    st.integers(1, 3),
    st.lists(st.tuples(st.floats(0, 5), st.lists(st.integers(2, 400), max_size=5)), max_size=3),
)
def test_whoever_is_kept_back_is_kept_for_a_while(jobs, free, soon):
    """Whoever came first begins; nobody who only may come begins, and nobody twice."""
    queue = [each for length, kind in jobs for each in waiting([length], kind)]
    started = begun(queue, free, COSTS, [Soon(free_s, waiting(lengths)) for free_s, lengths in soon])
    found = [id(each) for batch in started for each in batch]

    assert len(found) == len(set(found)) <= len(queue)
    assert set(found) <= set(map(id, queue))
    assert not queue or id(queue[0]) in found
    assert len(started) <= free


@given(
    st.lists(st.tuples(st.integers(2, 400), st.sampled_from(["greedy", "hot", None])), max_size=40),
    st.integers(1, 5),
    st.floats(0, 1),
    st.floats(1, 500),
)
def test_a_plan_never_loses_or_doubles_a_job(jobs, free, slope, tokens):
    """It uses what is free, keeps to its limits, and begins with whoever waits for longest."""
    costs = Costs(0.01, slope, 0.0004, 0, free)
    queue = [
        Waiting(Job(number, [], Options(1, frozenset())), kind, length=length, tokens=tokens)
        for number, (length, kind) in enumerate(jobs)
    ]
    plan = batches(queue, free, costs)
    started = [each.job.id for batch in plan for each in batch]

    assert len(started) == len(set(started))
    assert len(plan) <= free
    assert len(plan) == free or len(started) == len(queue)
    assert not queue or 0 in started
    for batch in plan:
        assert 1 <= len(batch) <= costs.max_rows
        assert len({each.kind for each in batch}) == 1
        assert len(batch) == 1 or batch[0].kind is not None
        assert max(each.length for each in batch) - min(each.length for each in batch) <= MAX_SPREAD


@given(st.lists(st.lists(st.tuples(st.sampled_from([10, 12, 500, 900]), st.booleans()), max_size=4), max_size=60))
def test_nobody_waits_for_ever(arrivals):
    """However many come later and fit better: a job has begun at the latest when all who were there before have."""
    queue, due = [], {}
    for turn, come in enumerate([*arrivals, *[[]] * sum(map(len, arrivals))]):
        for length, hot in come:
            queue += waiting([length], hot)
            due[id(queue[-1].job)] = turn + len(queue) - 1
        for batch in batches(queue, 1, COSTS):
            for each in batch:
                assert turn <= due[id(each.job)]
                queue.remove(each)

    assert queue == []
