"""When those who run are called back."""

import pytest

from backends.local.decoding.job import Job, Options
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.plan import Waiting
from backends.local.scheduling.preemption import Running, called_back
from backends.local.scheduling.prefix_cache import NONE, Prefix

COSTS = Costs(0.015, 0.06, 0.001, 73_728, 2)
TOKENS = 48
NOW = 100.0


def rows(count, *, made=0, tokens=TOKENS, length=64, **other):
    options = Options(TOKENS, frozenset(), repetition_penalty=other.pop("penalty", 1.0))
    return [
        Waiting(
            Job(number, [0] * length, options), other.get("kind", "greedy"), length=length, tokens=tokens - made,
            made=[1] * made, prefix=other.get("prefix", NONE), shared=other.get("prefix", NONE),
            recalled=other.get("recalled", False),
        )
        for number in range(count)
    ]  # fmt: skip


def running(count, *, since=0.02, **other):
    return Running(rows(count, **other), NOW - since)


def called(queue, batches, free):
    for batch in batches:
        batch.look(lambda prefix: prefix)
    found = called_back(queue, batches, free, COSTS, NOW)
    return [batches.index(batch) for batch in found]


def test_the_first_of_a_herd_does_not_keep_a_worker_for_itself():
    """Nor do the first two, or the first three."""
    assert called(rows(15), [running(1)], 1) == [0]
    assert called(rows(14), [running(1), running(1)], 0) == [0, 1]
    assert called(rows(13), [running(1), running(2)], 0) == [0, 1]


def test_who_is_nearly_done_is_left_alone():
    """The one who comes gets the other worker, or waits."""
    assert called(rows(1), [running(8, made=40, since=2)], 1) == []
    assert called(rows(1), [running(8, made=40, since=2), running(8, made=40, since=2)], 0) == []
    assert called(rows(2), [running(2)], 1) == []


def test_who_would_wait_for_long_answers_joins_them():
    """As long as they have only begun."""
    long = {"tokens": 2000, "since": 0.5}

    assert called(rows(4), [running(4, made=10, **long), running(4, made=500, **long)], 0) == [0]


def test_what_makes_a_prompt_much_longer_is_not_worth_it():
    """In a batch it would say nothing until the others have said as much."""
    assert called(rows(15), [running(1, made=200, tokens=2000, since=4)], 0) == []


@pytest.mark.parametrize(
    "other", [{"kind": "hot"}, {"kind": None}, {"prefix": Prefix("key", b"digest", 100)}, {"penalty": 1.3}], ids=str
)
def test_those_unlike_who_waits_go_on(other):
    """And those whose repeated tokens are counted, which would be counted anew."""
    assert called(rows(15), [running(1, **other)], 1) == []


def test_nobody_is_called_back_all_the_time():
    """But again when that was long ago for what it costs."""
    assert called(rows(15), [running(1, recalled=True)], 1) == []
    assert called(rows(15), [running(1, recalled=True, since=1)], 1) == [0]


def test_who_still_reads_for_long_is_not_waited_for():
    """It hears of nothing before it has read."""
    batch = running(1)
    assert called(rows(15), [batch], 1) == [0]

    batch.rows[0].length = 5000  # of its prompt; what is kept of it would be less to read again
    batch.rows[0].job.prompt = [0] * 64

    assert called(rows(15), [batch], 1) == []


def test_rows_that_have_ended_do_not_count():
    batch = running(8, made=2, since=1)
    for row in batch.rows[1:]:
        row.over = True

    assert called(rows(15), [batch], 1) == [0]

    batch.rows[0].over = True

    assert called(rows(15), [batch], 1) == []


def test_who_has_been_called_is_not_called_again():
    """And it counts as running: somebody waits for it."""
    batch = running(1)
    batch.called = True

    assert called(rows(15), [batch], 0) == []
    assert 0 not in called(rows(13), [batch, running(1)], 0)


def test_whoever_reads_on_while_others_speak_is_waited_for():
    """The longest prompt of a batch hears that it is called when it speaks."""
    batch = running(2, made=10, since=1)
    batch.rows[1].length, batch.rows[1].made = 124, []

    assert batch.soon_s(COSTS, NOW) == pytest.approx(50 * COSTS.rows_step_s(2))

    batch.rows[1].made.append(1)

    assert batch.soon_s(COSTS, NOW) == 0


def test_nobody_overtakes_who_came_earlier_and_fits_no_batch():
    """With a worker free he gets that."""
    other = rows(1, kind="hot")

    assert called([*other, *rows(15)], [running(1)], 0) == []
    assert called([*rows(15), *other], [running(1)], 0) == [0]


def test_a_beginning_that_is_kept_since_they_began_is_theirs_too():
    """The first of a herd has read all of its prompt; the second one shows that it was worth keeping."""
    kept = Prefix("key", b"digest", 40)
    batch = running(1)
    batch.rows[0].shared = kept

    assert called(rows(15, prefix=kept), [batch], 1) == [0]
    assert batch.again[0].length == 24
