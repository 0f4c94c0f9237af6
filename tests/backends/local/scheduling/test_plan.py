"""Tests of which jobs run together."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.local.decoding.job import DecodingOptions, Job
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.plan import (
    MAX_PROMPT_SPREAD,
    BusyWorker,
    ScheduledJob,
    end_times_s,
    plan_batches,
    plan_with_busy_workers,
)
from backends.local.scheduling.prefix_cache import Prefix

COSTS = Costs(0.011, 0.08, 0.0004, 73_728, 2)
TOKENS = 48


def queue_of(lengths, batch_key="greedy", **other):
    return [
        ScheduledJob(
            Job(number, [0] * length, DecodingOptions(TOKENS, frozenset())),
            batch_key,
            prefill_tokens=length,
            expected_tokens=TOKENS,
            **other,
        )
        for number, length in enumerate(lengths)
    ]


def plan_lengths(jobs, free, costs=COSTS):
    return [[each.prefill_tokens for each in batch] for batch in plan_batches(jobs, free, costs)]


def test_equal_jobs_are_split_evenly():
    """Over all free workers."""
    assert plan_lengths(queue_of([64] * 16), 2) == [[64] * 8] * 2
    assert [len(batch) for batch in plan_lengths(queue_of([64] * 16), 3)] == [6, 6, 4]
    assert plan_lengths(queue_of([64] * 3), 8) == [[64]] * 3


def test_one_free_worker_gets_all_jobs_in_one_batch():
    assert plan_lengths(queue_of([64] * 16), 1) == [[64] * 16]


def test_jobs_of_similar_length_stay_together():
    """In any order of arrival."""
    lengths = [80, 40, 60, 50, 44, 76, 72, 48]
    first, second = plan_lengths(queue_of(lengths), 2)

    assert first + second == sorted(lengths)
    assert 3 <= len(first) <= 5


def test_a_long_prompt_does_not_join_short_ones():
    """All of them would wait for each of its tokens."""
    assert plan_lengths(queue_of([60, 100, 300, 800]), 1) == [[60, 100]]
    assert plan_lengths(queue_of([800, 60, 100, 300]), 1) == [[800]]
    assert plan_lengths(queue_of([60, 100, 300, 800]), 4) == [[60], [100], [300], [800]]
    assert plan_lengths(queue_of([60, 100, 300, 800]), 3) == [[60, 100], [300], [800]]


def test_the_first_job_leads_the_first_batch():
    """So no job waits forever."""
    assert plan_lengths(queue_of([64, 500, 64, 64]), 1)[0][0] == 64
    assert plan_lengths(queue_of([500, 64, 64, 64]), 1) == [[500]]


def test_different_jobs_never_share_a_batch():
    """With other sampling, with another prefix, or jobs that run alone."""
    greedy, hot = queue_of([64] * 2), queue_of([64] * 2, "hot")
    kept = queue_of([64] * 2, prefix=Prefix("key", b"digest", 100))
    alone = queue_of([64] * 2, None)
    mixed = [each for pair in zip(greedy, hot, kept, alone, strict=True) for each in pair]

    assert [[each.batch_key for each in batch] for batch in plan_batches(mixed, 8, COSTS)].count(["greedy"]) == 4
    assert [[mixed.index(each) for each in batch] for batch in plan_batches(mixed, 5, COSTS)] == [
        [0, 4],
        [1, 5],
        [2, 6],
        [3],
        [7],
    ]


def test_the_rows_of_a_batch_are_limited():
    """The remaining jobs run on the next worker, or wait."""
    # Each row costs as much as five steps: at most 8 rows, and sharing rarely pays.
    narrow = Costs(0.011, 5.0, 0.0, 0, 2)
    wide = Costs(0.011, 0.15, 0.0004, 0, 2)

    assert plan_lengths(queue_of([64] * 30), 1, narrow) == [[64]]
    assert plan_lengths(queue_of([64] * 50), 2, wide) == [[64] * wide.max_rows] * 2


def test_the_group_with_most_work_gets_more_workers():
    """Three workers, two groups: the larger group gets two."""
    jobs = [*queue_of([64] * 2, "hot"), *queue_of([64] * 12)]

    assert plan_lengths(jobs, 3) == [[64] * 2, [64] * 6, [64] * 6]


@pytest.mark.parametrize(
    ("gpus", "free", "batches"),
    [(1, 2, [[64] * 12]), (1, 16, [[64] * 12]), (2, 4, [[64] * 6] * 2), (3, 2, [[64] * 6] * 2)],
)
def test_the_workers_of_one_gpu_do_not_share_a_batch(gpus, free, batches):
    """They would slow each other down."""
    assert plan_lengths(queue_of([64] * 12), free, replace(COSTS, gpus=gpus)) == batches


def test_jobs_that_cannot_share_a_batch_use_all_workers_of_a_gpu():
    jobs = [*queue_of([64] * 2, "hot"), *queue_of([64] * 12)]

    assert plan_lengths(jobs, 2, replace(COSTS, gpus=1)) == [[64] * 2, [64] * 12]


def prefill_lengths(groups):
    return [[each.prefill_tokens for each in group] for group in groups]


def test_jobs_are_held_back_for_a_worker_that_is_free_soon():
    """With the jobs that it runs now, which are expected again; the first job starts at once."""
    queue, others = queue_of([*range(40, 64, 3), 64, 67, 70, 73, 76]), queue_of([79, 82, 85])

    assert prefill_lengths(plan_with_busy_workers(queue, 1, COSTS, [BusyWorker(0.1, others)])) == [[*range(40, 64, 3)]]
    assert prefill_lengths(plan_with_busy_workers(queue[::-1], 1, COSTS, [BusyWorker(0.1, others)])) == [
        [64, 67, 70, 73, 76]
    ]
    assert prefill_lengths(plan_with_busy_workers(queue, 1, COSTS, [])) == [[*range(40, 64, 3), 64, 67, 70, 73, 76]]


def test_no_job_is_held_back_for_a_worker_with_much_work():
    """Nor for one that has enough similar jobs of its own."""
    assert prefill_lengths(plan_with_busy_workers(queue_of([64] * 8), 1, COSTS, [BusyWorker(9.0, queue_of([64]))])) == [
        [64] * 8
    ]
    assert prefill_lengths(
        plan_with_busy_workers(queue_of([64] * 8), 1, COSTS, [BusyWorker(0.1, queue_of([64] * 8))])
    ) == [[64] * 8]
    assert prefill_lengths(plan_with_busy_workers(queue_of([64] * 8), 1, COSTS, [BusyWorker(0.01, [])])) == [[64] * 4]


def test_steps_become_faster_as_rows_end():
    """A row has its answer after its own steps."""
    rows = queue_of([100, 100])
    rows[1].expected_tokens = 10
    prefill_s, both_s, one_s = 200 * 0.0004, COSTS.batch_step_s(2), COSTS.batch_step_s(1)

    assert end_times_s(rows, COSTS) == pytest.approx([prefill_s + 10 * both_s, prefill_s + 10 * both_s + 38 * one_s])


@given(
    st.lists(st.tuples(st.integers(2, 400), st.sampled_from(["greedy", "hot", None])), max_size=20),
    st.integers(1, 3),
    st.lists(st.tuples(st.floats(0, 5), st.lists(st.integers(2, 400), max_size=5)), max_size=3),
)
def test_jobs_that_are_held_back_still_run(jobs, free, busy):
    """The first job starts; no expected job starts, and no job starts twice."""
    queue = [each for length, batch_key in jobs for each in queue_of([length], batch_key)]
    started = plan_with_busy_workers(
        queue, free, COSTS, [BusyWorker(free_in_s, queue_of(lengths)) for free_in_s, lengths in busy]
    )
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
def test_a_plan_never_loses_or_duplicates_a_job(jobs, free, slope, tokens):
    """It uses all free workers, respects its limits, and starts with the job that has waited longest."""
    costs = Costs(0.01, slope, 0.0004, 0, free)
    queue = [
        ScheduledJob(
            Job(number, [], DecodingOptions(1, frozenset())), batch_key, prefill_tokens=length, expected_tokens=tokens
        )
        for number, (length, batch_key) in enumerate(jobs)
    ]
    plan = plan_batches(queue, free, costs)
    started = [each.job.id for batch in plan for each in batch]

    assert len(started) == len(set(started))
    assert len(plan) <= free
    assert len(plan) == free or len(started) == len(queue)
    assert not queue or 0 in started
    for batch in plan:
        assert 1 <= len(batch) <= costs.max_rows
        assert len({each.batch_key for each in batch}) == 1
        assert len(batch) == 1 or batch[0].batch_key is not None
        assert (
            max(each.prefill_tokens for each in batch) - min(each.prefill_tokens for each in batch) <= MAX_PROMPT_SPREAD
        )


@given(st.lists(st.lists(st.tuples(st.sampled_from([10, 12, 500, 900]), st.booleans()), max_size=4), max_size=60))
def test_no_job_waits_forever(arrivals):
    """A job starts at the latest when all that came before have started, however well later ones fit."""
    queue, latest_turn = [], {}
    for turn, come in enumerate([*arrivals, *[[]] * sum(map(len, arrivals))]):
        for length, hot in come:
            queue += queue_of([length], hot)
            latest_turn[id(queue[-1].job)] = turn + len(queue) - 1
        for batch in plan_batches(queue, 1, COSTS):
            for each in batch:
                assert turn <= latest_turn[id(each.job)]
                queue.remove(each)

    assert queue == []
