"""Tests of the scheduler: jobs -> batches -> steps."""

import asyncio
import itertools
import threading

import pytest

from backends.local.decoding import constrained
from backends.local.decoding.job import Token
from backends.local.scheduling import collecting, outbox, preemption, scheduler
from tests.backends.local.scheduling.scheduler_client import FOREVER, PATIENCE_S, prompt, run_scheduler


@pytest.fixture
def batches(monkeypatch):
    """The ids of the jobs in each batch, in the order of their start."""
    started = []
    run = scheduler.run_batch

    def run_batch(generator, vocabulary, jobs, prefix, *callbacks, **more):
        started.append([job.id for job in jobs])
        run(generator, vocabulary, jobs, prefix, *callbacks, **more)

    monkeypatch.setattr(scheduler, "run_batch", run_batch)
    return started


async def test_a_job_starts_delivers_its_tokens_and_ends(random_model):
    async with run_scheduler(random_model) as client:
        client.submit(1, prompt(1))
        await client.wait_for_end(1)

        assert (client.cached, len(client.tokens[1]), client.ends) == ({1: 0}, 10, {1: "length"})


async def test_jobs_that_arrive_together_run_together(random_model, batches):
    """An equal part on each worker."""
    async with run_scheduler(random_model, workers=2) as client:
        for number in range(16):
            client.submit(number, prompt(number))
        await client.wait_for_end(*range(16))

    assert sorted(map(sorted, batches)) == [list(range(8)), list(range(8, 16))]


async def test_all_rows_of_a_step_are_delivered_at_once(endless_model, batches):
    """With at most one message for each step."""
    async with run_scheduler(endless_model) as client:
        for number in range(16):
            client.submit(number, [5, 6], max_tokens=100)
        await client.wait_for_end(*range(16))

        assert len(batches) == 1
        assert len(client.deliveries) <= 1 + 100 + 1


async def test_tokens_that_are_not_needed_at_once_are_delivered_together(endless_model, monkeypatch):
    """All of them, and with the end of the answer."""
    monkeypatch.setattr(outbox, "HOLD_S", 10 * PATIENCE_S)
    async with run_scheduler(endless_model) as client:
        for number in range(4):
            client.submit(number, [5, 6], max_tokens=100, delivers_at_once=False)
        await client.wait_for_end(0, 1, 2, 3)

        assert [len(client.tokens[number]) for number in range(4)] == [100] * 4
        assert len(client.deliveries) == 1 + 1  # the start, and all tokens


async def test_tokens_of_a_job_are_delivered_at_once_when_that_is_asked_for(endless_model, monkeypatch):
    """From the next one on. A job that is not there is ignored."""
    monkeypatch.setattr(outbox, "HOLD_S", 10 * PATIENCE_S)
    async with run_scheduler(endless_model) as client:
        client.submit(1, [5, 6], FOREVER, delivers_at_once=False)
        await client.until(lambda: 1 in client.cached)
        client.scheduler.deliver_at_once(1)
        client.scheduler.deliver_at_once(2)
        await client.wait_for_start(1)
        client.scheduler.cancel(1)


async def test_a_plan_counts_tokens_that_were_not_delivered_yet(endless_model, monkeypatch):
    """A job that runs is as far as its tokens, not as far as those that were delivered."""
    monkeypatch.setattr(outbox, "HOLD_S", 10 * PATIENCE_S)
    counted, choose = [], preemption.choose_preemptions

    def choose_preemptions(queue, running, *others):
        counted.extend(len(row.generated) for batch in running for row in batch.rows)
        return choose(queue, running, *others)

    monkeypatch.setattr(preemption, "choose_preemptions", choose_preemptions)
    async with run_scheduler(endless_model) as client:
        client.submit(1, [5, 6], FOREVER, delivers_at_once=False)
        async with asyncio.timeout(PATIENCE_S):
            for number in itertools.count(2):
                if any(counted):
                    break
                client.submit(number, [5, 6], temperature=1.0)  # it cannot share the batch, which therefore goes on
                await asyncio.sleep(0.01)

        assert client.tokens[1] == []

        client.scheduler.cancel(1)
        await client.wait_for_end(2)


async def test_a_job_never_waits_while_nothing_runs(random_model):
    """It starts in the next turn of the loop, without the time in which others are collected."""
    async with run_scheduler(random_model) as client:
        client.submit(1, prompt(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # in which the client receives the first step

        assert client.cached == {1: 0}
        await client.wait_for_end(1)


async def test_jobs_that_arrive_while_a_batch_runs_are_collected(endless_model, batches, monkeypatch):
    """They arrive one after another, but soon enough to share a batch."""
    monkeypatch.setattr(collecting, "QUIET_FRACTION", 10.0)
    monkeypatch.setattr(collecting, "QUIET_S", 0.2)
    async with run_scheduler(endless_model, workers=2) as client:
        client.submit(0, [5, 6], FOREVER)
        await client.wait_for_start(0)
        for number in (1, 2, 3):
            client.submit(number, [5, 6])
            await asyncio.sleep(0)
        await client.wait_for_end(1, 2, 3)

    assert batches == [[0], [1, 2, 3]]


async def test_all_callers_of_the_time_of_a_batch_are_expected_after_it(endless_model, batches, monkeypatch):
    """Also those whose answers ended earlier, and not those whose jobs still run."""
    expected = []
    monkeypatch.setattr(collecting.Collector, "note_end", lambda _collector, count: expected.append(count))
    async with run_scheduler(endless_model, workers=2) as client:
        client.submit(0, [5, 6], FOREVER)
        await client.wait_for_start(0)
        for number in (1, 2, 3):
            client.submit(number, [5, 6], 300)
        await client.wait_for_start(1)
        client.submit(4, [5, 6])
        client.scheduler.cancel(4)
        await client.wait_for_end(1, 2, 3)
        await client.until(lambda: expected)

    assert (batches, expected[:1]) == ([[0], [1, 2, 3]], [4])


@pytest.fixture
def released(monkeypatch):
    """An event; the batch of job 0 does not run before it is set."""
    released = threading.Event()
    run = scheduler.run_batch

    def run_batch(generator, vocabulary, jobs, *callbacks, **more):
        if jobs[0].id == 0 and not jobs[0].answer_tokens:
            released.wait(PATIENCE_S)
        run(generator, vocabulary, jobs, *callbacks, **more)

    monkeypatch.setattr(scheduler, "run_batch", run_batch)
    return released


async def test_the_first_of_many_simultaneous_jobs_continues_with_the_others(
    random_model, released, batches, monkeypatch
):
    """With the tokens that it would have generated alone; its start is not reported again."""
    monkeypatch.setattr(scheduler, "AFTER_BATCH_S", PATIENCE_S)
    async with run_scheduler(random_model, workers=2, compute_type="float32") as client:
        client.submit(100, prompt(0), 60)
        await client.wait_for_end(100)
        client.submit(0, prompt(0), 60)
        await client.until(lambda: 0 in client.cached)
        for number in range(1, 16):
            client.submit(number, prompt(number), 60)
        await asyncio.sleep(0.1)
        released.set()
        await client.wait_for_end(*range(16))

        assert client.tokens[0] == client.tokens[100]
        assert [len(client.tokens[number]) for number in range(16)] == [60] * 16
    assert [len(batch) for batch in batches] == [1, 1, 8, 8]


async def test_waiting_jobs_do_not_wait_long_for_a_preempted_batch(random_model, released):
    """If it does not stop, they start without it; it continues later with others, or alone."""
    async with run_scheduler(random_model, workers=2) as client:
        client.submit(0, prompt(0), 60)
        await client.until(lambda: 0 in client.cached)
        for number in range(1, 16):
            client.submit(number, prompt(number), 60)
        await client.wait_for_end(*range(1, 16))
        early = 0 in client.ends
        released.set()
        await client.wait_for_end(0)

    assert (early, len(client.tokens[0])) == (False, 60)


async def test_the_first_job_is_served_first(endless_model, batches):
    """Together with those that can join it."""
    async with run_scheduler(endless_model) as client:
        client.submit(0, [5, 6], FOREVER)
        await client.wait_for_start(0)
        for number, length in enumerate([500, 10, 12, 500, 11], start=1):
            client.submit(number, prompt(0, length), 3)
        client.scheduler.cancel(0)
        await client.wait_for_end(1, 2, 3, 4, 5)

    assert [sorted(batch) for batch in batches] == [[0], [1, 4], [2, 3, 5]]


async def test_a_repetition_penalty_counts_the_answer_only(random_model, batches):
    """In one batch with shorter prompts the library would count the rest of a prompt, too."""
    async with run_scheduler(random_model) as client:
        client.submit(0, prompt(0), 50)
        await client.wait_for_start(0)
        for number, length in enumerate([10, 12, 10], start=1):
            client.submit(number, prompt(0, length), repetition_penalty=1.3)
        await client.wait_for_end(1, 2, 3)

    assert batches == [[0], [1, 3], [2]]


async def test_different_sampling_needs_different_batches(random_model, batches):
    """The library has one set of options for all rows; jobs with top_logprobs run alone."""
    async with run_scheduler(random_model) as client:
        client.submit(0, prompt(0), 50)
        await client.wait_for_start(0)
        client.scheduler.cancel(0)
        for number, options in enumerate(
            [{}, {"temperature": 1.0}, {}, {"repetition_penalty": 1.3}, {"top_logprobs": 2}], start=1
        ):
            client.submit(number, prompt(0), **options)
        await client.wait_for_end(1, 2, 3, 4, 5)

        assert batches == [[0], [1, 3], [2], [4]]
        assert client.tokens[1] == client.tokens[3] == client.tokens[5]


async def test_a_cancelled_job_delivers_no_more_steps(endless_model, batches):
    """A waiting one never runs; a running one ends within one step and frees its worker."""
    async with run_scheduler(endless_model) as client:
        client.submit(1, [5, 6], FOREVER)
        client.submit(2, [5, 6], FOREVER, temperature=1.0)
        await client.wait_for_start(1)
        client.scheduler.cancel(2)
        client.scheduler.cancel(1)
        client.scheduler.cancel(1)
        delivered = len(client.tokens[1])
        client.submit(3, [5, 6])
        await client.wait_for_end(3)

        assert (len(client.tokens[1]), client.ends, batches) == (delivered, {3: "length"}, [[1], [3]])


async def test_a_batch_continues_without_cancelled_rows(endless_model):
    """It ends when its last row has ended."""
    async with run_scheduler(endless_model) as client:
        for number in range(4):
            client.submit(number, [5, 6], FOREVER)
        await client.wait_for_start(0, 1, 2, 3)
        for number in range(3):
            client.scheduler.cancel(number)
        delivered = len(client.tokens[3])
        await client.until(lambda: len(client.tokens[3]) > delivered + 5)
        client.scheduler.cancel(3)
        client.submit(4, [5, 6])
        await client.wait_for_end(4)


async def test_an_error_of_the_library_fails_its_job_only(random_model):
    """With the message of the library; the next job is not affected."""
    async with run_scheduler(random_model) as client:
        client.submit(1, prompt(1), temperature=1.0, top_p=7.0)
        await client.wait_for_end(1)
        client.submit(2, prompt(2))
        await client.wait_for_end(2)

        assert client.ends == {1: "failed", 2: "length"}
        assert client.messages[1].startswith("ValueError")


@pytest.mark.parametrize(
    ("fault", "message"),
    [(MemoryError("all of it"), "MemoryError: memoryerror"), (None, "the run returned without an end")],
)
async def test_each_job_has_an_end_whatever_happens_to_its_run(random_model, monkeypatch, fault, message):

    def run_batch(*_, **__):
        if fault:
            raise fault

    monkeypatch.setattr(scheduler, "run_batch", run_batch)
    async with run_scheduler(random_model) as client:
        client.submit(1, prompt(1))
        await client.wait_for_end(1)

        assert (client.ends, client.messages) == ({1: "failed"}, {1: message})


async def test_a_constrained_job_runs_alone(random_model, monkeypatch, no_batch_sharing):
    """Each token is delivered at once; nearly all of its prompt can be kept, which is not reported to the next job."""
    seen = []

    def run_constrained(*arguments, extend_prefix):
        _, _, grammars, job, prefix, emit, end = arguments
        seen.append((grammars, job.id, len(prefix), extend_prefix()))
        emit(job, Token(7))
        end(job, "stop", "")

    monkeypatch.setattr(constrained, "run_constrained", run_constrained)
    async with run_scheduler(random_model, prefix_bytes=10**6) as client:
        client.submit(1, prompt(1, 150), grammar="g", prefix_key="team")
        client.submit(2, prompt(1, 150), grammar="g", prefix_key="team")
        await client.wait_for_end(1, 2)

        assert seen == [(None, 1, 0, 148), (None, 2, 0, 148)]
        assert (client.tokens, client.ends) == ({1: [7], 2: [7]}, {1: "stop", 2: "stop"})
        assert client.cached == {1: 0, 2: 0}


async def test_a_repeated_prefix_is_not_read_again(random_model):
    """The answers are the same; the cached tokens are reported when the job starts."""
    shared = {"prefix_tokens": 100, "prefix_key": "team"}
    prompts = [[*prompt(1, 100), 5, 6, number] for number in range(4)]
    async with run_scheduler(random_model, prefix_bytes=10**6) as client:
        for number, each in enumerate(prompts):
            client.submit(number, each)
            await client.wait_for_end(number)
            client.submit(100 + number, each, **shared)
            await client.wait_for_end(100 + number)

        assert [client.tokens[number] for number in range(4)] == [client.tokens[100 + number] for number in range(4)]
        assert [client.cached[100 + number] for number in range(4)] == [0, 0, 100, 100]


async def test_several_jobs_with_one_prefix_read_it_once(random_model, batches):
    """Jobs that arrive together have used it often enough."""
    async with run_scheduler(random_model, prefix_bytes=10**6) as client:
        for number in range(5):
            client.submit(number, [*prompt(1, 100), 5, 6, number], prefix_tokens=100, prefix_key="team")
        await client.wait_for_end(*range(5))
        client.submit(9, [*prompt(1, 100), 5, 6], prefix_tokens=100, prefix_key="team")
        await client.wait_for_end(9)

        assert (client.cached[0], client.cached[9], len(batches)) == (0, 100, 2)


async def test_a_full_prefix_cache_is_reset(random_model):
    """While nothing runs; then other prefixes fit."""
    async with run_scheduler(random_model, prefix_bytes=150 * 100) as client:
        for number in range(7):
            client.submit(number, [*prompt(number > 2, 100), 5, 6], prefix_tokens=100, prefix_key="team")
            await client.wait_for_end(number)

        assert [client.cached[number] for number in range(7)] == [0, 0, 100, 0, 0, 0, 100]


async def test_closing_ends_all_jobs(endless_model):
    """Running and waiting ones; no further step is delivered, and no job starts."""
    async with run_scheduler(endless_model) as client:
        client.submit(1, [5, 6], FOREVER)
        client.submit(2, [5, 6], FOREVER, temperature=1.0)
        await client.wait_for_start(1)
        await client.scheduler.close()
        delivered = len(client.deliveries)
        client.submit(3, [5, 6])
        await asyncio.sleep(0.01)

        assert len(client.deliveries) == delivered
        assert client.ends == {}
