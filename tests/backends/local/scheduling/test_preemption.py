"""Tests of which running batches are preempted."""

import pytest

from backends.local.decoding.job import DecodingOptions, Job
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.plan import ScheduledJob
from backends.local.scheduling.preemption import RunningBatch, choose_preemptions
from backends.local.scheduling.prefix_cache import NO_PREFIX, Prefix

COSTS = Costs(0.015, 0.06, 0.001, 73_728, 2)
TOKENS = 48
NOW = 100.0


def rows(count, *, generated=0, tokens=TOKENS, length=64, **other):
    options = DecodingOptions(TOKENS, frozenset(), repetition_penalty=other.pop("penalty", 1.0))
    return [
        ScheduledJob(
            Job(number, [0] * length, options), other.get("batch_key", "greedy"), prefill_tokens=length, expected_tokens=tokens - generated,
            generated=[1] * generated, prefix=other.get("prefix", NO_PREFIX), shared_prefix=other.get("prefix", NO_PREFIX),
            preempted=other.get("preempted", False),
        )
        for number in range(count)
    ]  # fmt: skip


def running(count, *, since=0.02, **other):
    return RunningBatch(rows(count, **other), NOW - since)


def preempted(queue, batches, free):
    for batch in batches:
        batch.update_requeued(lambda prefix: prefix)
    chosen = choose_preemptions(queue, batches, free, COSTS, NOW)
    return [batches.index(batch) for batch in chosen]


def test_the_first_of_many_simultaneous_jobs_does_not_keep_a_worker_alone():
    """Nor do the first two or three."""
    assert preempted(rows(15), [running(1)], 1) == [0]
    assert preempted(rows(14), [running(1), running(1)], 0) == [0, 1]
    assert preempted(rows(13), [running(1), running(2)], 0) == [0, 1]


def test_a_batch_that_is_nearly_done_is_not_preempted():
    """The new job gets the other worker, or waits."""
    assert preempted(rows(1), [running(8, generated=40, since=2)], 1) == []
    assert preempted(rows(1), [running(8, generated=40, since=2), running(8, generated=40, since=2)], 0) == []
    assert preempted(rows(2), [running(2)], 1) == []


def test_a_young_batch_with_long_answers_is_preempted():
    """An older one is not."""
    long = {"tokens": 2000, "since": 0.5}

    assert preempted(rows(4), [running(4, generated=10, **long), running(4, generated=500, **long)], 0) == [0]


def test_rows_with_much_longer_prompts_are_not_merged():
    """In a shared batch they would produce no token until the others have caught up."""
    assert preempted(rows(15), [running(1, generated=200, tokens=2000, since=4)], 0) == []


@pytest.mark.parametrize(
    "other",
    [{"batch_key": "hot"}, {"batch_key": None}, {"prefix": Prefix("key", b"digest", 100)}, {"penalty": 1.3}],
    ids=str,
)
def test_a_batch_is_not_preempted_for_jobs_that_cannot_join_it(other):
    """Nor one with a repetition penalty, whose repeated tokens would be counted again."""
    assert preempted(rows(15), [running(1, **other)], 1) == []


def test_a_preempted_row_runs_for_a_while_before_the_next_preemption():
    """In proportion to the time that it takes to read it again."""
    assert preempted(rows(15), [running(1, preempted=True)], 1) == []
    assert preempted(rows(15), [running(1, preempted=True, since=1)], 1) == [0]


def test_a_batch_with_a_long_prefill_is_not_preempted():
    """It cannot stop before it has read its prompts."""
    batch = running(1)
    assert preempted(rows(15), [batch], 1) == [0]

    batch.rows[0].prefill_tokens = 5000  # while its job, read again with a kept prefix, would have less to read
    batch.rows[0].job.prompt = [0] * 64

    assert preempted(rows(15), [batch], 1) == []


def test_rows_that_have_ended_do_not_count():
    batch = running(8, generated=2, since=1)
    for row in batch.rows[1:]:
        row.ended = True

    assert preempted(rows(15), [batch], 1) == [0]

    batch.rows[0].ended = True

    assert preempted(rows(15), [batch], 1) == []


def test_a_preempted_batch_is_not_preempted_again():
    """It still counts as running."""
    batch = running(1)
    batch.preempted = True

    assert preempted(rows(15), [batch], 0) == []
    assert 0 not in preempted(rows(13), [batch, running(1)], 0)


def test_a_row_that_still_reads_delays_the_preemption():
    """The longest prompt of a batch stops with its first token."""
    batch = running(2, generated=10, since=1)
    batch.rows[1].prefill_tokens, batch.rows[1].generated = 124, []

    assert batch.stops_in_s(COSTS, NOW) == pytest.approx(50 * COSTS.batch_step_s(2))

    batch.rows[1].generated.append(1)

    assert batch.stops_in_s(COSTS, NOW) == 0


def test_no_job_overtakes_an_earlier_one_that_cannot_join():
    """With a free worker the earlier one starts there."""
    other = rows(1, batch_key="hot")

    assert preempted([*other, *rows(15)], [running(1)], 0) == []
    assert preempted([*rows(15), *other], [running(1)], 0) == [0]


def test_a_prefix_that_is_kept_since_the_start_shortens_the_prefill():
    """The first job has read all of its prompt; the second one shows that its prefix is worth keeping."""
    kept = Prefix("key", b"digest", 40)
    batch = running(1)
    batch.rows[0].shared_prefix = kept

    assert preempted(rows(15, prefix=kept), [batch], 1) == [0]
    assert batch.requeued[0].prefill_tokens == 24
