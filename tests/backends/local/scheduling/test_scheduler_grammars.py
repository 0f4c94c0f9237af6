"""Grammars that leave it to the model how to begin: with others in a batch, and alone from where the two disagree."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.local.decoding import batch, constrained
from backends.local.grammar import json_schema_grammar
from backends.local.request.choice import tools_of
from backends.local.scheduling import scheduler as module
from backends.local.scheduling.estimates import TRIED_EVERY
from backends.local.speech import format_named
from tests.backends.local.json_schemas import schemas
from tests.backends.local.scheduling.desk import FOREVER, grammars_of, prompt, working
from tests.backends.local.tiny_models import tiny
from tests.models import TAGS, write_model

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = {"tools": [{"type": "function", "name": "weather", "parameters": CITY, "strict": True}]}
OPEN, CLOSE = TAGS[:2]
HEAD, CALL, TAIL = '\n{"name": "weather", "arguments": ', '{"city": "Oslo"}', "}\n"
SAYS = {
    "text": (["Hello", " there", "!"], False),
    "a call": ([OPEN, HEAD, CALL, TAIL, CLOSE], True),
    "text and a call": (["Let", " me", OPEN, HEAD, CALL, TAIL, CLOSE, " Done"], True),
    "a call that is wrong": (["Well", OPEN, HEAD, '{"town": "Oslo"}', TAIL, CLOSE], True),
    "another tool": ([OPEN, '\n{"name": "time", "arguments": ', CALL, TAIL, CLOSE], True),
    "a tag alone": (["Hello", CLOSE, " there"], True),
    "a tag at once": ([CLOSE, " there"], True),
    "a tag in letters": (["Hello <tool", "_call>", "!"], True),
}


@pytest.fixture(scope="module", params=SAYS)
def speaker(request, tmp_path_factory):
    """A model, the grammar of its tools, and whether it breaks that."""
    says, breaks = SAYS[request.param]
    model = tiny(write_model(tmp_path_factory.mktemp("speaker"), says))
    return model, grammars_of(model), auto(model), breaks


def auto(model):
    """What an answer must be with tools that may be called."""
    controls = {tag: model.vocabulary.index(tag) for tag in TAGS}
    return tools_of(TOOLS, form=format_named("hermes", controls)).grammar(None, controls)


@pytest.fixture
def runs(monkeypatch):
    """The numbers of the jobs in each run, as they were started; those of one that a grammar held in a set."""
    started = []
    together, alone = module.run_batch, constrained.run_constrained

    def run_batch(generator, vocabulary, jobs, *told, **more):
        started.append([job.id for job in jobs])
        together(generator, vocabulary, jobs, *told, **more)

    def run_constrained(generator, vocabulary, grammars, job, *told, **more):
        started.append({job.id})
        alone(generator, vocabulary, grammars, job, *told, **more)

    monkeypatch.setattr(module, "run_batch", run_batch)
    monkeypatch.setattr(constrained, "run_constrained", run_constrained)
    return started


async def test_it_says_what_it_would_say_held_from_the_start(speaker, runs, distrust):
    """Wherever it is cut off; and it is alone only if its grammar had to correct it."""
    model, grammars, grammar, breaks = speaker
    told = {"grammar": grammar, "stop_ids": {model.end}}
    async with working(model, grammars=grammars, compute_type="float32") as desk:
        for limit in range(1, 26):
            for number in (limit, 100 + limit):
                desk.submit(number, [5, model.vocabulary.index("\u010a")], limit, free=True, **told)
            desk.submit(-limit, [5, model.vocabulary.index("\u010a")], limit, **told)
            await desk.ended(limit, 100 + limit, -limit)

            for number in (limit, 100 + limit):
                assert (desk.tokens[number], desk.ends[number]) == (desk.tokens[-limit], desk.ends[-limit])
                assert desk.cached[number] == 0
    assert ([25, 125] in runs, {25} in runs, {125} in runs) == (True, breaks, breaks)


@pytest.mark.parametrize("stop", ["Let", " me", OPEN, HEAD])
async def test_other_stop_tokens_end_it_where_they_would_if_it_was_held(tmp_path, stop, distrust):
    model = tiny(write_model(tmp_path, SAYS["text and a call"][0]))
    told = {"grammar": auto(model), "stop_ids": {model.end, model.vocabulary.index(stop)}}
    async with working(model, grammars=grammars_of(model), compute_type="float32") as desk:
        for number, free in enumerate((True, True, False)):
            desk.submit(number, [5, model.vocabulary.index("\u010a")], 30, free=free, **told)
        await desk.ended(0, 1, 2)

        assert desk.tokens[0] == desk.tokens[1] == desk.tokens[2]
        assert desk.ends[0] == desk.ends[1] == desk.ends[2]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(schemas(), min_size=1, max_size=4), st.integers(1, 40), st.sampled_from([0, 100_000]))
async def test_whatever_the_grammar_it_says_what_it_would_say_held_from_the_start(
    babbler, distrust, some, limit, prefix_bytes
):
    """Also with a model that hardly ever agrees."""
    async with working(babbler, 1, prefix_bytes, grammars_of(babbler), "float32") as desk:
        for number, schema in enumerate(some, start=1):
            told = {"grammar": json_schema_grammar(schema), "stop_ids": {babbler.end}}
            desk.submit(number, prompt(number, 90), limit, free=True, **told)
            desk.submit(-number, prompt(number, 90), limit, **told)
        numbers = [sign * number for number in range(1, len(some) + 1) for sign in (1, -1)]
        await desk.ended(*numbers)

        for number in numbers:
            assert (desk.tokens[number], desk.ends[number]) == (desk.tokens[-number], desk.ends[-number])


async def test_those_who_follow_share_a_batch_with_those_who_have_no_grammar(greeter, runs):
    async with working(greeter, grammars=grammars_of(greeter)) as desk:
        for number in range(8):
            desk.submit(number, [5, 6], 5, grammar="start: /(?s:.*)/" if number % 2 else "", free=True)
        await desk.ended(*range(8))

    assert [sorted(run) for run in runs] == [list(range(8))]


async def test_who_is_called_back_goes_on_by_its_grammar(breaker, runs):
    """Alone it was held to it; with the others it is followed from where it was."""
    told = {"grammar": "start: /(?s:.{30})/", "stop_ids": {breaker.end}, "free": True}
    async with working(breaker, 2, grammars=grammars_of(breaker), compute_type="float32") as desk:
        desk.submit(100, prompt(0), 60, **told)
        await desk.ended(100)
        desk.submit(0, prompt(0), 60, **told)
        await desk.begun(0)
        for number in range(1, 16):
            desk.submit(number, prompt(number), 60, **told)
        await desk.ended(*range(16))

        assert (desk.tokens[0], desk.ends[0]) == (desk.tokens[100], desk.ends[100])
    assert runs[:2] == [{100}, {0}]
    assert any(0 in run for run in runs[2:])


async def test_a_grammar_that_keeps_others_waiting_goes_on_alone(greeter, runs, monkeypatch):
    """With what was made; its answer is the same."""
    monkeypatch.setattr(batch, "MAX_GRAMMAR_S", 0.0)
    told = {"grammar": "start: /(?s:.*)/", "stop_ids": {greeter.end}, "free": True}
    async with working(greeter, grammars=grammars_of(greeter)) as desk:
        for number, limit in enumerate((9, 9, 1)):
            desk.submit(number, [5, greeter.vocabulary.index("\u010a")], limit, **told)
        await desk.ended(0, 1, 2)

        assert [desk.said(number) for number in range(3)] == ["Hello there!", "Hello there!", "Hello"]
        assert desk.ends == {0: "stop", 1: "stop", 2: "length"}
    assert [run if isinstance(run, set) else sorted(run) for run in runs] == [[0, 1, 2], {0}, {1}]


async def test_whoever_shares_with_nobody_is_held_from_the_start(greeter, runs):
    """Its grammar spares the model what leaves no choice."""
    async with working(greeter, grammars=grammars_of(greeter)) as desk:
        desk.submit(1, [5, 6], grammar='start: "forced" /.*/', free=True)
        await desk.ended(1)

    assert runs == [{1}]


async def test_it_goes_on_before_those_who_have_not_begun(clock, runs):
    """In the order in which they were stopped."""
    async with working(clock, grammars=grammars_of(clock)) as desk:
        desk.submit(1, [5, 6], grammar='start: "a"', free=True)
        desk.submit(2, [5, 6], grammar='start: "b"', free=True)
        desk.submit(3, [5, 6], FOREVER)
        await desk.begun(3)
        desk.submit(4, [5, 6], 5)
        desk.scheduler.cancel(3)
        await desk.ended(1, 2, 4)

        assert runs == [[1, 2, 3], {1}, {2}, [4]]
        assert desk.ends == {1: "stop", 2: "stop", 4: "length"}


@pytest.fixture
def breaker(tmp_path):
    """Says two words that its grammar allows and one that it does not, for ever."""
    return tiny(write_model(tmp_path, [" tick", " tock", CLOSE], loops=True))


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 50])
async def test_whoever_leaves_is_heard_of_no_more(breaker, tokens):
    """Before it is stopped, and after."""
    async with working(breaker, grammars=grammars_of(breaker)) as desk:
        for number in (1, 3):
            desk.submit(number, [5, breaker.vocabulary.index(CLOSE)], FOREVER, grammar="start: /(?s:.*)/", free=True)
        await desk.until(lambda: len(desk.tokens.get(1, [])) >= tokens)
        desk.scheduler.cancel(3)
        desk.scheduler.cancel(1)
        heard = len(desk.tokens.get(1, []))
        desk.submit(2, [5, 6], 5)
        await desk.ended(2)

        assert (len(desk.tokens.get(1, [])), desk.ends) == (heard, {2: "length"})


async def test_whoever_leaves_while_it_waits_to_go_on_never_does(clock, runs):
    async with working(clock, grammars=grammars_of(clock)) as desk:
        desk.submit(1, [5, 6], grammar='start: "a"', free=True)
        desk.submit(2, [5, 6], FOREVER)
        await desk.until(lambda: len(desk.tokens.get(2, [])) > 5)
        desk.scheduler.cancel(1)
        desk.scheduler.cancel(2)
        desk.submit(3, [5, 6], 5)
        await desk.ended(3)

        assert (runs, desk.tokens.get(1, []), desk.ends) == ([[1, 2], [3]], [], {3: "length"})


@pytest.mark.parametrize("grammar", ["start: b", "no grammar"])
async def test_a_grammar_that_is_none_fails_its_own_job_alone(babbler, grammar):
    async with working(babbler, grammars=grammars_of(babbler)) as desk:
        desk.submit(1, prompt(1), grammar=grammar, free=True)
        desk.submit(2, prompt(2))
        await desk.ended(1, 2)

        assert (desk.tokens[1], desk.ends) == ([], {1: "failed", 2: "length"})
        assert "ValueError" in desk.messages[1]


async def test_what_is_kept_of_prompts_is_told_once(babbler):
    """And a job counts once, in however many runs it is made."""
    told = {"grammar": 'start: "a"', "free": True, "prefix": 90}
    async with working(babbler, prefix_bytes=10**6, grammars=grammars_of(babbler)) as desk:
        for number in range(8):
            desk.submit(number, [*prompt(1, 90), 5, 6, number], prefix_key=f"team {number % 2}", **told)
            if number % 2:
                await desk.ended(number - 1, number)

        assert desk.cached == {0: 0, 1: 0, 2: 0, 3: 0, 4: 90, 5: 90, 6: 90, 7: 90}


@pytest.mark.parametrize("temperature", [0.7, 1.5])
async def test_chance_is_that_of_what_is_allowed(babbler, temperature):
    """What is drawn in a batch and not allowed is drawn anew, and together that is the right distribution."""
    counts = []
    async with working(babbler, 2, grammars=grammars_of(babbler)) as desk:
        for free in (True, False):
            numbers = [number + 1000 * free for number in range(600)]
            for number in numbers:
                desk.submit(
                    number,
                    prompt(1),
                    1,
                    free=free,
                    temperature=temperature,
                    grammar='start: "H" | "W" | "s" | "t" | "o"',
                )
            await desk.ended(*numbers)
            said = [desk.vocabulary[desk.tokens[number][0]] for number in numbers]
            counts.append([said.count(letter) / 600 for letter in "HWsto"])

    assert counts[0] == pytest.approx(counts[1], abs=0.09)


async def test_those_held_from_the_start_share_a_batch_while_they_follow(greeter, runs):
    """JSON that a model writes by itself costs no worker of its own."""
    told = {"grammar": 'start: "Hello there!"', "stop_ids": {greeter.end}}
    async with working(greeter, grammars=grammars_of(greeter)) as desk:
        for number in range(8):
            desk.submit(number, [5, greeter.vocabulary.index("\u010a")], 9, **told)
        await desk.ended(*range(8))

        assert {desk.said(number) for number in range(8)} == {"Hello there!"}
    assert [sorted(run) for run in runs] == [list(range(8))]


async def test_those_who_do_not_follow_are_soon_held_alone(greeter, runs):
    """And tried again now and then. What they say is the same."""
    told = {"grammar": 'start: "Good" /[a-z]{4}/', "stop_ids": {greeter.end}}
    async with working(greeter, grammars=grammars_of(greeter)) as desk:
        for number in range(24):
            for each in (number, 100 + number):
                desk.submit(each, [5, greeter.vocabulary.index("\u010a")], 9, **told)
            await desk.ended(number, 100 + number)

        assert len({desk.said(number) for number in desk.tokens}) == 1
    together = [at for at, run in enumerate(runs) if isinstance(run, list) and len(run) > 1]
    assert (together[0], len(together) < 6, {0} in runs) == (0, True, True)


async def test_trust_comes_back_when_they_follow(greeter, runs):
    """However few are tried, and each alone."""
    told = {"grammar": 'start: "Hello there!"', "stop_ids": {greeter.end}}
    async with working(greeter, grammars=grammars_of(greeter)) as desk:
        for _ in range(9):
            desk.scheduler._trust.see(left_after=0)
        for number in range(0, 8 * TRIED_EVERY, 8):
            for each in range(number, number + 8):
                desk.submit(each, [5, greeter.vocabulary.index("\u010a")], 9, **told)
            await desk.ended(*range(number, number + 8))

    assert isinstance(runs[0], set)
    assert sorted(runs[-1]) == list(range(8 * TRIED_EVERY - 8, 8 * TRIED_EVERY))
