"""Jobs -> batches -> steps."""

import asyncio
import threading

import pytest

from backends.local.decoding import constrained
from backends.local.decoding.job import Token
from backends.local.scheduling import scheduler as module
from tests.backends.local.scheduling.desk import FOREVER, PATIENCE_S, prompt, working


@pytest.fixture
def batches(monkeypatch):
    """The numbers of the jobs in each batch, as they were started."""
    started = []
    run = module.run_batch

    def run_batch(generator, vocabulary, jobs, prefix, *told, **more):
        started.append([job.id for job in jobs])
        run(generator, vocabulary, jobs, prefix, *told, **more)

    monkeypatch.setattr(module, "run_batch", run_batch)
    return started


async def test_a_job_begins_brings_its_tokens_and_ends(babbler):
    async with working(babbler) as desk:
        desk.submit(1, prompt(1))
        await desk.ended(1)

        assert (desk.cached, len(desk.tokens[1]), desk.ends) == ({1: 0}, 10, {1: "length"})


async def test_those_who_come_together_run_together(babbler, batches):
    """An equal part on each worker."""
    async with working(babbler, workers=2) as desk:
        for number in range(16):
            desk.submit(number, prompt(number))
        await desk.ended(*range(16))

    assert sorted(map(sorted, batches)) == [list(range(8)), list(range(8, 16))]


async def test_all_rows_of_a_step_are_delivered_at_once(clock, batches):
    """One wake-up for each step at most, however many rows it has."""
    async with working(clock) as desk:
        for number in range(16):
            desk.submit(number, [5, 6], max_tokens=100)
        await desk.ended(*range(16))

        assert len(batches) == 1
        assert len(desk.deliveries) <= 1 + 100 + 1


async def test_nobody_waits_while_nothing_runs(babbler):
    """The first one begins in the loop's next turn, without the time in which others are gathered."""
    async with working(babbler) as desk:
        desk.submit(1, prompt(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert desk.cached == {1: 0}
        await desk.ended(1)


async def test_what_comes_while_something_runs_is_gathered(clock, batches, monkeypatch):
    """One after the other, but soon enough to go together."""
    monkeypatch.setattr(module, "QUIET", 10.0)
    monkeypatch.setattr(module, "QUIET_S", 0.2)
    async with working(clock, workers=2) as desk:
        desk.submit(0, [5, 6], FOREVER)
        await desk.begun(0)
        for number in (1, 2, 3):
            desk.submit(number, [5, 6])
            await asyncio.sleep(0)
        await desk.ended(1, 2, 3)

    assert batches == [[0], [1, 2, 3]]


@pytest.fixture
def heard(monkeypatch):
    """The batch that job 0 begins hears of nothing before this is set."""
    heard = threading.Event()
    run = module.run_batch

    def run_batch(generator, vocabulary, jobs, *given, **more):
        if jobs[0].id == 0 and not jobs[0].said:
            heard.wait(PATIENCE_S)
        run(generator, vocabulary, jobs, *given, **more)

    monkeypatch.setattr(module, "run_batch", run_batch)
    return heard


async def test_the_first_of_a_herd_goes_on_with_the_others(babbler, heard, batches, monkeypatch):
    """Where it was, with the same words that it would have said alone; it is not told that it begins anew."""
    monkeypatch.setattr(module, "AGAIN_S", PATIENCE_S)
    async with working(babbler, workers=2, compute_type="float32") as desk:
        desk.submit(100, prompt(0), 60)
        await desk.ended(100)
        desk.submit(0, prompt(0), 60)
        await desk.until(lambda: 0 in desk.cached)
        for number in range(1, 16):
            desk.submit(number, prompt(number), 60)
        await asyncio.sleep(0.1)
        heard.set()
        await desk.ended(*range(16))

        assert desk.tokens[0] == desk.tokens[100]
        assert [len(desk.tokens[number]) for number in range(16)] == [60] * 16
    assert [len(batch) for batch in batches] == [1, 1, 8, 8]


async def test_those_who_come_do_not_wait_long_for_who_is_called(babbler, heard):
    """Should it not hear, they begin without it; it goes on with others, or alone, when it has heard."""
    async with working(babbler, workers=2) as desk:
        desk.submit(0, prompt(0), 60)
        await desk.until(lambda: 0 in desk.cached)
        for number in range(1, 16):
            desk.submit(number, prompt(number), 60)
        await desk.ended(*range(1, 16))
        early = 0 in desk.ends
        heard.set()
        await desk.ended(0)

    assert (early, len(desk.tokens[0])) == (False, 60)


async def test_whoever_came_first_is_served_first(clock, batches):
    """And whoever can join him."""
    async with working(clock) as desk:
        desk.submit(0, [5, 6], FOREVER)
        await desk.begun(0)
        for number, length in enumerate([500, 10, 12, 500, 11], start=1):
            desk.submit(number, prompt(0, length), 3)
        desk.scheduler.cancel(0)
        await desk.ended(1, 2, 3, 4, 5)

    assert [sorted(batch) for batch in batches] == [[0], [1, 4], [2, 3, 5]]


async def test_repeated_tokens_are_those_of_the_answer(babbler, batches):
    """In one batch with shorter prompts the library would take the rest of a prompt for a part of its answer."""
    async with working(babbler) as desk:
        desk.submit(0, prompt(0), 50)
        await desk.begun(0)
        for number, length in enumerate([10, 12, 10], start=1):
            desk.submit(number, prompt(0, length), repetition_penalty=1.3)
        await desk.ended(1, 2, 3)

    assert batches == [[0], [1, 3], [2]]


async def test_other_sampling_is_another_batch(babbler, batches):
    """The library knows one set of options for all rows; so do those who look at each token alone."""
    async with working(babbler) as desk:
        desk.submit(0, prompt(0), 50)
        await desk.begun(0)
        desk.scheduler.cancel(0)
        for number, how in enumerate(
            [{}, {"temperature": 1.0}, {}, {"repetition_penalty": 1.3}, {"top_logprobs": 2}], start=1
        ):
            desk.submit(number, prompt(0), **how)
        await desk.ended(1, 2, 3, 4, 5)

        assert batches == [[0], [1, 3], [2], [4]]
        assert desk.tokens[1] == desk.tokens[3] == desk.tokens[5]


async def test_a_job_that_nobody_wants_any_more_is_heard_of_no_more(clock, batches):
    """While it waits it never runs; while it runs it ends within a step, and its worker is free."""
    async with working(clock) as desk:
        desk.submit(1, [5, 6], FOREVER)
        desk.submit(2, [5, 6], FOREVER, temperature=1.0)
        await desk.begun(1)
        desk.scheduler.cancel(2)
        desk.scheduler.cancel(1)
        desk.scheduler.cancel(1)
        heard = len(desk.tokens[1])
        desk.submit(3, [5, 6])
        await desk.ended(3)

        assert (len(desk.tokens[1]), desk.ends, batches) == (heard, {3: "length"}, [[1], [3]])


async def test_a_batch_goes_on_without_those_who_left(clock):
    """It ends when the last one has."""
    async with working(clock) as desk:
        for number in range(4):
            desk.submit(number, [5, 6], FOREVER)
        await desk.begun(0, 1, 2, 3)
        for number in range(3):
            desk.scheduler.cancel(number)
        heard = len(desk.tokens[3])
        await desk.until(lambda: len(desk.tokens[3]) > heard + 5)
        desk.scheduler.cancel(3)
        desk.submit(4, [5, 6])
        await desk.ended(4)


async def test_what_the_library_refuses_fails_alone(babbler):
    """With what it said; the next job is none the worse for it."""
    async with working(babbler) as desk:
        desk.submit(1, prompt(1), temperature=1.0, top_p=7.0)
        await desk.ended(1)
        desk.submit(2, prompt(2))
        await desk.ended(2)

        assert desk.ends == {1: "failed", 2: "length"}
        assert desk.messages[1].startswith("ValueError")


@pytest.mark.parametrize(
    ("fault", "message"), [(MemoryError("all of it"), "MemoryError: all of it"), (None, "nothing said how it ended")]
)
async def test_no_job_is_left_without_an_end(babbler, monkeypatch, fault, message):
    """Whatever happens to what runs it."""

    def run_batch(*_, **__):
        if fault:
            raise fault

    monkeypatch.setattr(module, "run_batch", run_batch)
    async with working(babbler) as desk:
        desk.submit(1, prompt(1))
        await desk.ended(1)

        assert (desk.ends, desk.messages) == ({1: "failed"}, {1: message})


async def test_a_grammar_is_run_by_its_own(babbler, monkeypatch, distrust):
    """Alone, every token on its way at once; nearly all of its prompt can be kept, which the next one is not told."""
    seen = []

    def run_constrained(*given, keep):
        _, _, grammars, job, prefix, emit, ended = given
        seen.append((grammars, job.id, len(prefix), keep()))
        emit(job, Token(7))
        ended(job, "stop", "")

    monkeypatch.setattr(constrained, "run_constrained", run_constrained)
    async with working(babbler, prefix_bytes=10**6) as desk:
        desk.submit(1, prompt(1, 150), grammar="g", prefix_key="team")
        desk.submit(2, prompt(1, 150), grammar="g", prefix_key="team")
        await desk.ended(1, 2)

        assert seen == [(None, 1, 0, 148), (None, 2, 0, 148)]
        assert (desk.tokens, desk.ends) == ({1: [7], 2: [7]}, {1: "stop", 2: "stop"})
        assert desk.cached == {1: 0, 2: 0}


async def test_a_beginning_that_comes_again_is_not_read_again(babbler):
    """Which changes nothing about the answer; how much was not read is told before it begins."""
    told = {"prefix": 100, "prefix_key": "team"}
    lots = [[*prompt(1, 100), 5, 6, number] for number in range(4)]
    async with working(babbler, prefix_bytes=10**6) as desk:
        for number, each in enumerate(lots):
            desk.submit(number, each)
            await desk.ended(number)
            desk.submit(100 + number, each, **told)
            await desk.ended(100 + number)

        assert [desk.tokens[number] for number in range(4)] == [desk.tokens[100 + number] for number in range(4)]
        assert [desk.cached[100 + number] for number in range(4)] == [0, 0, 100, 100]


async def test_several_with_one_beginning_read_it_once(babbler, batches):
    """Those who come together have seen it often enough."""
    async with working(babbler, prefix_bytes=10**6) as desk:
        for number in range(5):
            desk.submit(number, [*prompt(1, 100), 5, 6, number], prefix=100, prefix_key="team")
        await desk.ended(*range(5))
        desk.submit(9, [*prompt(1, 100), 5, 6], prefix=100, prefix_key="team")
        await desk.ended(9)

        assert (desk.cached[0], desk.cached[9], len(batches)) == (0, 100, 2)


async def test_when_the_kept_ones_fill_their_room_they_are_forgotten(babbler):
    """While nothing runs; then there is room for others."""
    async with working(babbler, prefix_bytes=150 * 100) as desk:
        for number in range(7):
            desk.submit(number, [*prompt(number > 2, 100), 5, 6], prefix=100, prefix_key="team")
            await desk.ended(number)

        assert [desk.cached[number] for number in range(7)] == [0, 0, 100, 0, 0, 0, 100]


async def test_closing_ends_everything(clock):
    """What runs, what waits; nothing is delivered any more, and nobody new begins."""
    async with working(clock) as desk:
        desk.submit(1, [5, 6], FOREVER)
        desk.submit(2, [5, 6], FOREVER, temperature=1.0)
        await desk.begun(1)
        await desk.scheduler.close()
        delivered = len(desk.deliveries)
        desk.submit(3, [5, 6])
        await asyncio.sleep(0.01)

        assert len(desk.deliveries) == delivered
        assert desk.ends == {}
