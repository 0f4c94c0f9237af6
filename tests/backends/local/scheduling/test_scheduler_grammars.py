"""Tests of the scheduler with grammars: in a batch until the model violates one, then alone."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.local.decoding import batch, constrained
from backends.local.grammar import json_schema_grammar
from backends.local.request.tool_choice import select_tools
from backends.local.scheduling import scheduler
from backends.local.scheduling.estimates import PROBE_EVERY
from backends.local.speech import find_tool_format
from tests.backends.local.json_schemas import schemas
from tests.backends.local.scheduling.scheduler_client import FOREVER, compile_grammars, prompt, run_scheduler
from tests.backends.local.tiny_models import open_tiny_model
from tests.models import TAGS, write_model

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = {"tools": [{"type": "function", "name": "weather", "parameters": CITY, "strict": True}]}
OPEN, CLOSE = TAGS[:2]
HEAD, CALL, TAIL = '\n{"name": "weather", "arguments": ', '{"city": "Oslo"}', "}\n"
OUTPUTS = {
    "text": (["Hello", " there", "!"], False),
    "a call": ([OPEN, HEAD, CALL, TAIL, CLOSE], True),
    "text and a call": (["Let", " me", OPEN, HEAD, CALL, TAIL, CLOSE, " Done"], True),
    "a call that is wrong": (["Well", OPEN, HEAD, '{"town": "Oslo"}', TAIL, CLOSE], True),
    "another tool": ([OPEN, '\n{"name": "time", "arguments": ', CALL, TAIL, CLOSE], True),
    "a tag alone": (["Hello", CLOSE, " there"], True),
    "a tag at once": ([CLOSE, " there"], True),
    "a tag in letters": (["Hello <tool", "_call>", "!"], True),
}


@pytest.fixture(scope="module", params=OUTPUTS)
def tool_model(request, tmp_path_factory):
    """A model, its compiler, the grammar of its tools, and whether it violates that grammar."""
    output, violates = OUTPUTS[request.param]
    model = open_tiny_model(write_model(tmp_path_factory.mktemp("tools"), output))
    return model, compile_grammars(model), optional_tools(model), violates


def optional_tools(model):
    """Return the grammar of an answer that may call tools."""
    controls = {tag: model.vocabulary.index(tag) for tag in TAGS}
    return select_tools(TOOLS, tool_format=find_tool_format("hermes", controls)).build_grammar(None, controls)


@pytest.fixture
def runs(monkeypatch):
    """The ids of the jobs in each run, in the order of their start: a list for a batch, a set for a constrained run."""
    started = []
    batched, alone = scheduler.run_batch, constrained.run_constrained

    def run_batch(generator, vocabulary, jobs, *callbacks, **more):
        started.append([job.id for job in jobs])
        batched(generator, vocabulary, jobs, *callbacks, **more)

    def run_constrained(generator, vocabulary, grammars, job, *callbacks, **more):
        started.append({job.id})
        alone(generator, vocabulary, grammars, job, *callbacks, **more)

    monkeypatch.setattr(scheduler, "run_batch", run_batch)
    monkeypatch.setattr(constrained, "run_constrained", run_constrained)
    return started


async def test_an_answer_is_the_same_in_a_batch_and_alone(tool_model, runs, no_batch_sharing):
    """At any limit; the job only runs alone if its grammar had to correct it."""
    model, grammars, grammar, violates = tool_model
    options = {"grammar": grammar, "stop_ids": {model.end}}
    async with run_scheduler(model, grammars=grammars, compute_type="float32") as client:
        for limit in range(1, 26):
            for number in (limit, 100 + limit):
                client.submit(number, [5, model.vocabulary.index("\u010a")], limit, allows_free_text=True, **options)
            client.submit(-limit, [5, model.vocabulary.index("\u010a")], limit, **options)
            await client.wait_for_end(limit, 100 + limit, -limit)

            for number in (limit, 100 + limit):
                assert (client.tokens[number], client.ends[number]) == (client.tokens[-limit], client.ends[-limit])
                assert client.cached[number] == 0
    assert ([25, 125] in runs, {25} in runs, {125} in runs) == (True, violates, violates)


@pytest.mark.parametrize("stop", ["Let", " me", OPEN, HEAD])
async def test_stop_tokens_end_an_answer_at_the_same_place_in_a_batch_and_alone(tmp_path, stop, no_batch_sharing):
    model = open_tiny_model(write_model(tmp_path, OUTPUTS["text and a call"][0]))
    options = {"grammar": optional_tools(model), "stop_ids": {model.end, model.vocabulary.index(stop)}}
    async with run_scheduler(model, grammars=compile_grammars(model), compute_type="float32") as client:
        for number, free in enumerate((True, True, False)):
            client.submit(number, [5, model.vocabulary.index("\u010a")], 30, allows_free_text=free, **options)
        await client.wait_for_end(0, 1, 2)

        assert client.tokens[0] == client.tokens[1] == client.tokens[2]
        assert client.ends[0] == client.ends[1] == client.ends[2]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(schemas(), min_size=1, max_size=4), st.integers(1, 40), st.sampled_from([0, 100_000]))
async def test_answers_under_any_grammar_are_the_same_in_a_batch_and_alone(
    random_model, no_batch_sharing, schema_list, limit, prefix_bytes
):
    """Also with a model that rarely follows its grammar."""
    async with run_scheduler(random_model, 1, prefix_bytes, compile_grammars(random_model), "float32") as client:
        for number, schema in enumerate(schema_list, start=1):
            options = {"grammar": json_schema_grammar(schema), "stop_ids": {random_model.end}}
            client.submit(number, prompt(number, 90), limit, allows_free_text=True, **options)
            client.submit(-number, prompt(number, 90), limit, **options)
        numbers = [sign * number for number in range(1, len(schema_list) + 1) for sign in (1, -1)]
        await client.wait_for_end(*numbers)

        for number in numbers:
            assert (client.tokens[number], client.ends[number]) == (client.tokens[-number], client.ends[-number])


async def test_jobs_with_and_without_grammars_share_a_batch(greeting_model, runs):
    async with run_scheduler(greeting_model, grammars=compile_grammars(greeting_model)) as client:
        for number in range(8):
            client.submit(number, [5, 6], 5, grammar="start: /(?s:.*)/" if number % 2 else "", allows_free_text=True)
        await client.wait_for_end(*range(8))

    assert [sorted(run) for run in runs] == [list(range(8))]


async def test_a_preempted_job_continues_under_its_grammar(violating_model, runs):
    """Alone it was constrained; in a batch its grammar is followed from the same place."""
    options = {"grammar": "start: /(?s:.{30})/", "stop_ids": {violating_model.end}, "allows_free_text": True}
    async with run_scheduler(
        violating_model, 2, grammars=compile_grammars(violating_model), compute_type="float32"
    ) as client:
        client.submit(100, prompt(0), 60, **options)
        await client.wait_for_end(100)
        client.submit(0, prompt(0), 60, **options)
        await client.wait_for_start(0)
        for number in range(1, 16):
            client.submit(number, prompt(number), 60, **options)
        await client.wait_for_end(*range(16))

        assert (client.tokens[0], client.ends[0]) == (client.tokens[100], client.ends[100])
    assert runs[:2] == [{100}, {0}]
    assert any(0 in run for run in runs[2:])


async def test_a_slow_grammar_makes_its_job_continue_alone(greeting_model, runs, monkeypatch):
    """With the same answer."""
    monkeypatch.setattr(batch, "MAX_GRAMMAR_S", 0.0)
    options = {"grammar": "start: /(?s:.*)/", "stop_ids": {greeting_model.end}, "allows_free_text": True}
    async with run_scheduler(greeting_model, grammars=compile_grammars(greeting_model)) as client:
        for number, limit in enumerate((9, 9, 1)):
            client.submit(number, [5, greeting_model.vocabulary.index("\u010a")], limit, **options)
        await client.wait_for_end(0, 1, 2)

        assert [client.text(number) for number in range(3)] == ["Hello there!", "Hello there!", "Hello"]
        assert client.ends == {0: "stop", 1: "stop", 2: "length"}
    assert [run if isinstance(run, set) else sorted(run) for run in runs] == [[0, 1, 2], {0}, {1}]


async def test_a_single_job_is_constrained_from_the_start(greeting_model, runs):
    """Forced tokens then cost no steps."""
    async with run_scheduler(greeting_model, grammars=compile_grammars(greeting_model)) as client:
        client.submit(1, [5, 6], grammar='start: "forced" /.*/', allows_free_text=True)
        await client.wait_for_end(1)

    assert runs == [{1}]


async def test_jobs_that_left_a_batch_continue_before_new_ones(endless_model, runs):
    """In the order in which they left."""
    async with run_scheduler(endless_model, grammars=compile_grammars(endless_model)) as client:
        client.submit(1, [5, 6], grammar='start: "a"', allows_free_text=True)
        client.submit(2, [5, 6], grammar='start: "b"', allows_free_text=True)
        client.submit(3, [5, 6], FOREVER)
        await client.wait_for_start(3)
        client.submit(4, [5, 6], 5)
        client.scheduler.cancel(3)
        await client.wait_for_end(1, 2, 4)

        assert runs == [[1, 2, 3], {1}, {2}, [4]]
        assert client.ends == {1: "stop", 2: "stop", 4: "length"}


@pytest.fixture
def violating_model(tmp_path):
    """A model that repeats two words that its grammar allows, and one that it rejects."""
    return open_tiny_model(write_model(tmp_path, [" tick", " tock", CLOSE], loops=True))


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 50])
async def test_a_cancelled_job_delivers_no_more_steps(violating_model, tokens):
    """Before and after it has left its batch."""
    async with run_scheduler(violating_model, grammars=compile_grammars(violating_model)) as client:
        for number in (1, 3):
            client.submit(
                number,
                [5, violating_model.vocabulary.index(CLOSE)],
                FOREVER,
                grammar="start: /(?s:.*)/",
                allows_free_text=True,
            )
        await client.until(lambda: len(client.tokens.get(1, [])) >= tokens)
        client.scheduler.cancel(3)
        client.scheduler.cancel(1)
        delivered = len(client.tokens.get(1, []))
        client.submit(2, [5, 6], 5)
        await client.wait_for_end(2)

        assert (len(client.tokens.get(1, [])), client.ends) == (delivered, {2: "length"})


async def test_a_job_that_is_cancelled_while_it_waits_to_continue_never_runs(endless_model, runs):
    async with run_scheduler(endless_model, grammars=compile_grammars(endless_model)) as client:
        client.submit(1, [5, 6], grammar='start: "a"', allows_free_text=True)
        client.submit(2, [5, 6], FOREVER)
        await client.until(lambda: len(client.tokens.get(2, [])) > 5)
        client.scheduler.cancel(1)
        client.scheduler.cancel(2)
        client.submit(3, [5, 6], 5)
        await client.wait_for_end(3)

        assert (runs, client.tokens.get(1, []), client.ends) == ([[1, 2], [3]], [], {3: "length"})


@pytest.mark.parametrize("grammar", ["start: b", "no grammar"])
async def test_an_invalid_grammar_fails_its_own_job_only(random_model, grammar):
    async with run_scheduler(random_model, grammars=compile_grammars(random_model)) as client:
        client.submit(1, prompt(1), grammar=grammar, allows_free_text=True)
        client.submit(2, prompt(2))
        await client.wait_for_end(1, 2)

        assert (client.tokens[1], client.ends) == ([], {1: "failed", 2: "length"})
        assert "ValueError" in client.messages[1]


async def test_cached_tokens_are_reported_once_for_each_job(random_model):
    """However many runs it needs; it also counts as one use."""
    options = {"grammar": 'start: "a"', "allows_free_text": True, "prefix_tokens": 90}
    async with run_scheduler(random_model, prefix_bytes=10**6, grammars=compile_grammars(random_model)) as client:
        for number in range(8):
            client.submit(number, [*prompt(1, 90), 5, 6, number], prefix_key=f"team {number % 2}", **options)
            if number % 2:
                await client.wait_for_end(number - 1, number)

        assert client.cached == {0: 0, 1: 0, 2: 0, 3: 0, 4: 90, 5: 90, 6: 90, 7: 90}


@pytest.mark.parametrize("temperature", [0.7, 1.5])
async def test_sampling_has_the_same_distribution_in_a_batch_and_alone(random_model, temperature):
    """A token that was sampled in a batch and rejected is sampled again."""
    counts = []
    async with run_scheduler(random_model, 2, grammars=compile_grammars(random_model)) as client:
        for free in (True, False):
            numbers = [number + 1000 * free for number in range(600)]
            for number in numbers:
                client.submit(
                    number,
                    prompt(1),
                    1,
                    allows_free_text=free,
                    temperature=temperature,
                    grammar='start: "H" | "W" | "s" | "t" | "o"',
                )
            await client.wait_for_end(*numbers)
            tokens = [client.vocabulary[client.tokens[number][0]] for number in numbers]
            counts.append([tokens.count(letter) / 600 for letter in "HWsto"])

    assert counts[0] == pytest.approx(counts[1], abs=0.09)


async def test_constrained_jobs_share_a_batch_while_the_model_follows(greeting_model, runs):
    """JSON that a model generates by itself needs no worker of its own."""
    options = {"grammar": 'start: "Hello there!"', "stop_ids": {greeting_model.end}}
    async with run_scheduler(greeting_model, grammars=compile_grammars(greeting_model)) as client:
        for number in range(8):
            client.submit(number, [5, greeting_model.vocabulary.index("\u010a")], 9, **options)
        await client.wait_for_end(*range(8))

        assert {client.text(number) for number in range(8)} == {"Hello there!"}
    assert [sorted(run) for run in runs] == [list(range(8))]


async def test_constrained_jobs_run_alone_when_the_model_does_not_follow(greeting_model, runs):
    """With probes now and then; the answers are the same."""
    options = {"grammar": 'start: "Good" /[a-z]{4}/', "stop_ids": {greeting_model.end}}
    async with run_scheduler(greeting_model, grammars=compile_grammars(greeting_model)) as client:
        for number in range(24):
            for each in (number, 100 + number):
                client.submit(each, [5, greeting_model.vocabulary.index("\u010a")], 9, **options)
            await client.wait_for_end(number, 100 + number)

        assert len({client.text(number) for number in client.tokens}) == 1
    together = [at for at, run in enumerate(runs) if isinstance(run, list) and len(run) > 1]
    assert (together[0], len(together) < 6, {0} in runs) == (0, True, True)


async def test_sharing_resumes_when_the_model_follows_again(greeting_model, runs):
    """Although each probe runs alone."""
    options = {"grammar": 'start: "Hello there!"', "stop_ids": {greeting_model.end}}
    async with run_scheduler(greeting_model, grammars=compile_grammars(greeting_model)) as client:
        for _ in range(9):
            client.scheduler._adherence.record(left_after=0)
        for number in range(0, 8 * PROBE_EVERY, 8):
            for each in range(number, number + 8):
                client.submit(each, [5, greeting_model.vocabulary.index("\u010a")], 9, **options)
            await client.wait_for_end(*range(number, number + 8))

    assert isinstance(runs[0], set)
    assert sorted(runs[-1]) == list(range(8 * PROBE_EVERY - 8, 8 * PROBE_EVERY))
