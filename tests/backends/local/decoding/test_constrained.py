"""Answers that follow a grammar, made by real models."""

import json
from collections import Counter

import ctranslate2
import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from backends.local.decoding import constrained
from backends.local.decoding import grammar_matcher as grammars
from backends.local.decoding import restarts as resuming
from backends.local.decoding.constrained import run_constrained
from backends.local.decoding.grammar_matcher import Grammars
from backends.local.decoding.job import Job, Options, Token
from backends.local.decoding.sampling import chosen
from backends.local.grammar import json_schema_grammar
from tests.backends.local.decoding.test_batch import Heard
from tests.backends.local.json_schemas import schemas
from tests.backends.local.tiny_models import tiny
from tests.models import write_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["warm", "sunny"]}, "maxItems": 2},
        "here": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "here"],
    "additionalProperties": False,
}


class Counting:
    """The library's generator, with how often it was called."""

    def __init__(self, generator):
        self.generator, self.calls = generator, 0

    def generate_batch(self, *args, **options):
        self.calls += 1
        return self.generator.generate_batch(*args, **options)


class Speaker:
    """A model, and what it says when a grammar holds it."""

    def __init__(self, model, generator):
        self.vocabulary, self.end, self.generator = model.vocabulary, model.end, generator
        self.tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
        self.grammars = Grammars(self.tokenizer.to_str(), len(model.vocabulary), {model.end})

    def job(self, grammar, max_tokens=300, prompt="Hello, how are you?", **other):
        stop = other.pop("stop_ids", {self.end})
        prompt = prompt if isinstance(prompt, list) else self.tokenizer.encode(prompt).ids
        return Job(1, prompt, Options(max_tokens, frozenset(stop), grammar=grammar, **other))

    def run(self, job, kept=0, heard=None):
        heard = heard or Heard()
        run_constrained(self.generator, self.vocabulary, self.grammars, job, job.prompt[:kept], heard.emit, heard.ended)
        return heard

    def says(self, grammar, **other):
        job = self.job(grammar, **other)
        heard = self.run(job)
        return self.spelt(heard.ids(job)), heard.ends[1]

    def spelt(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def speaker(babbler):
    with babbler.loaded() as generator:
        yield Speaker(babbler, generator)


@pytest.fixture(scope="module")
def exact(babbler):
    """The same in whole floats: however its steps are cut into calls, it says the same."""
    return Speaker(babbler, ctranslate2.Generator(str(babbler.path), compute_type="float32"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(schema=schemas(), temperature=st.sampled_from([0.0, 1.0]), word=st.text("abcdefgh ", min_size=2, max_size=9))
def test_whole_answers_follow_their_schema(speaker, schema, temperature, word):
    """Whatever the schema and the model: what ended by itself is valid, what was cut off is a beginning of it."""
    text, [(finish, message)] = speaker.says(
        json_schema_grammar(schema), prompt=word + "??", temperature=temperature, max_tokens=200
    )

    assert (finish, message) in [("stop", ""), ("length", "")]
    if finish == "stop":
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def stepwise(speaker, job):
    """The plain way to do it: one call for each token, the best of those that the grammar allows."""
    matcher, made = speaker.grammars.matcher(job.options.grammar), []
    while not matcher.over and len(made) < job.options.max_tokens:
        prompt = [speaker.vocabulary[number] for number in [*job.prompt, *made]]
        (result,) = speaker.generator.generate_batch(
            [prompt], max_length=1, include_prompt_in_result=False, end_token=[], return_logits_vocab=True
        )
        matcher.allows(0)
        made.append(chosen(np.array(result.logits[0][0]), matcher.allowed(), job.options, np.random.default_rng()))
        if made[-1] == speaker.end:
            return made[:-1]
        matcher.consume(made[-1])
    return made


@pytest.mark.parametrize("schema", [PERSON, {"type": "object"}, {"enum": ["warmer", "warm", "warmest"]}], ids=str)
def test_greedily_it_is_what_one_call_for_each_token_would_say(exact, schema):
    same = 0
    for number in range(20):
        job = exact.job(json_schema_grammar(schema), max_tokens=60, prompt=f"What is {number} {number * 7}?")
        same += exact.run(job).ids(job) == stepwise(exact, job)

    assert same == 20


def test_chance_is_that_of_what_is_allowed(speaker):
    """What the library chooses is accepted or else chosen anew, and together that is the right distribution."""
    job = speaker.job('start: "H" | "W" | "s" | "t" | "o"', max_tokens=1, temperature=1.5)
    ids = [speaker.tokenizer.encode(letter).ids[0] for letter in "HWsto"]
    (result,) = speaker.generator.generate_batch(
        [[speaker.vocabulary[number] for number in job.prompt]], max_length=1, include_prompt_in_result=False,
        end_token=[], return_logits_vocab=True,
    )  # fmt: skip
    weights = np.exp(np.array(result.logits[0][0])[ids] / 1.5)
    found = Counter(speaker.run(job).ids(job)[0] for _ in range(1500))

    assert [found[number] / 1500 for number in ids] == pytest.approx(list(weights / weights.sum()), abs=0.06)


def test_what_is_forced_needs_no_model(speaker):
    """Not one call, when the grammar leaves no choice at all."""
    job, heard = speaker.job(json_schema_grammar({"const": {"a": [1, "two"]}})), Heard()
    run_constrained(None, speaker.vocabulary, speaker.grammars, job, (), heard.emit, heard.ended)

    assert speaker.spelt(heard.ids(job)) == '{"a": [1, "two"]}'
    assert heard.tokens[1][0] == Token(heard.ids(job)[0])
    assert heard.ends == {1: [("stop", "")]}


def test_a_model_that_follows_is_called_once(tmp_path):
    model = tiny(write_model(tmp_path, ['{"name": "', "Ann", '", "age": ', "7", "}"]))
    with model.loaded() as generator:
        counting = Counting(generator)
        speaker = Speaker(model, counting)
        schema = {
            **PERSON,
            "properties": {name: PERSON["properties"][name] for name in ("name", "age")},
            "required": ["name", "age"],
        }
        said = speaker.says(json_schema_grammar(schema))

        assert said == ('{"name": "Ann", "age": 7}', [("stop", "")])
        assert counting.calls == 1


def test_a_model_that_ends_too_soon_goes_on(greeter):
    """Its end is a token like others: the grammar says when it may come."""
    with greeter.loaded() as generator:
        text, ends = Speaker(greeter, generator).says("start: /[A-Za-z !]{20}/", prompt="\n\n\n")

    assert text.startswith("Hello there!")
    assert len(text) == 20
    assert ends == [("stop", "")]


def test_it_may_end_where_the_model_wants_to(greeter):
    with greeter.loaded() as generator:
        said = Speaker(greeter, generator).says("start: /(?s:.*)/", prompt="\n\n\n")

    assert said == ("Hello there!", [("stop", "")])


def test_a_tag_is_one_token(speaker):
    """Unquoted in the grammar, and one in the answer."""
    job = speaker.job('start: <tool_call> ("yes" | "no") </tool_call>')
    ids = speaker.run(job).ids(job)

    assert speaker.spelt(ids) in ("<tool_call>yes</tool_call>", "<tool_call>no</tool_call>")
    assert [speaker.vocabulary[ids[0]], speaker.vocabulary[ids[-1]]] == ["<tool_call>", "</tool_call>"]


@pytest.mark.parametrize("limit", range(1, 12))
def test_the_limit_counts_what_was_forced(exact, limit):
    grammar = json_schema_grammar(PERSON)
    whole, cut = exact.job(grammar), exact.job(grammar, max_tokens=limit)
    heard = exact.run(cut)

    assert heard.ids(cut) == exact.run(whole).ids(whole)[:limit]
    assert heard.ends == {1: [("length", "")]}


@pytest.mark.parametrize("steps", [1, 3])
def test_long_answers_are_made_in_several_calls(exact, monkeypatch, steps):
    job = exact.job(json_schema_grammar(PERSON))
    whole = exact.run(job).ids(job)
    monkeypatch.setattr(constrained, "MAX_STEPS", steps)

    assert exact.run(job).ids(job) == whole


def test_what_the_library_keeps_of_a_prompt_makes_no_difference(exact):
    """From the first call on, or from where it was asked for."""
    job = exact.job(json_schema_grammar(PERSON), prompt="Hello, how are you today? " * 9)
    later = Heard()
    run_constrained(
        exact.generator, exact.vocabulary, exact.grammars, job, (), later.emit, later.ended,
        keep=lambda: len(job.prompt) - 2,
    )  # fmt: skip

    assert exact.run(job, kept=len(job.prompt) - 2).ids(job) == exact.run(job).ids(job) == later.ids(job)


def test_only_who_is_interrupted_again_asks_to_have_its_prompt_kept(speaker, tmp_path):
    """Memory is dear."""
    asked = []

    def keep():
        asked.append(1)
        return 0

    model = tiny(write_model(tmp_path, ["{", '"a"', ": 1", "}"]))
    with model.loaded() as generator:
        follower = Speaker(model, generator)
        for each, grammar in ((follower, "start: /(?s:.*)/"), (speaker, 'start: /[a-z]{9}/ " so " /[0-9]{5}/')):
            job, heard = each.job(grammar, max_tokens=40), Heard()
            run_constrained(each.generator, each.vocabulary, each.grammars, job, (), heard.emit, heard.ended, keep=keep)
            asked.append(each is speaker)

    assert asked == [False, 1, True]


@pytest.mark.parametrize("temperature", [0, 1])
def test_every_token_is_told_as_likely_as_the_model_thinks(exact, temperature):
    """Also those that leave no choice: the model has to say each, before the grammar has its way."""
    job = exact.job(json_schema_grammar(PERSON), top_logprobs=3, temperature=temperature)
    heard, made = exact.run(job), []
    for token in heard.tokens[1]:
        prompt = [exact.vocabulary[number] for number in [*job.prompt, *made]]
        (result,) = exact.generator.generate_batch(
            [prompt], max_length=1, include_prompt_in_result=False, end_token=[], return_logits_vocab=True
        )
        logits = np.array(result.logits[0][0])

        assert token.logprob == pytest.approx(logits[token.id] - np.log(np.exp(logits).sum()), abs=1e-3)
        assert [number for number, _ in token.top] == list(np.argsort(-logits)[:3])
        made.append(token.id)
    assert json.loads(exact.spelt(made)).keys() == PERSON["properties"].keys()


@pytest.mark.parametrize("logprobs", [None, 0])
def test_forced_texts_hold_the_names_of_control_tokens(speaker, logprobs):
    """As text, and the answer goes on behind them."""
    schema = {"type": "object", "properties": {"<|im_start|>": {"enum": ["<|im_end|>"]}}, "required": ["<|im_start|>"]}
    grammar = json_schema_grammar(schema | {"additionalProperties": False})

    assert speaker.says(grammar, top_logprobs=logprobs) == ('{"<|im_start|>": "<|im_end|>"}', [("stop", "")])


def test_what_is_forced_is_no_end(speaker):
    """A stop token in the middle of what must be said does not end it."""
    job = speaker.job('start: "a" "b" "c"', stop_ids={speaker.tokenizer.encode("b").ids[0]})
    heard = speaker.run(job)

    assert speaker.spelt(heard.ids(job)) == "abc"
    assert heard.ends[1] == [("stop", "")]


class Leaving(Heard):
    """Leaves after so many tokens."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def emit(self, job, token):
        super().emit(job, token)
        job.cancelled = len(self.ids(job)) >= self.after


def test_it_ends_when_it_is_cancelled(speaker):
    """At the next token, however long it might have gone on."""
    job = speaker.job("start: /(?s:.*)/", max_tokens=10**6)
    heard = speaker.run(job, heard=Leaving(5))

    assert len(heard.ids(job)) == 5
    assert heard.ends == {1: [("stop", "")]}


def test_who_has_left_before_costs_nothing(speaker):
    job = speaker.job("start: /(?s:.*)/")
    job.cancelled = True
    counting = Counting(speaker.generator)
    heard = Heard()
    run_constrained(counting, speaker.vocabulary, speaker.grammars, job, (), heard.emit, heard.ended)

    assert (counting.calls, heard.ends) == (0, {1: [("stop", "")]})


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: b", "unknown name"),
        ("start: <nope>", "unknown special token"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_a_failure(speaker, grammar, message):
    """Of this answer alone: the next one is made."""
    _, [(finish, told)] = speaker.says(grammar, temperature=1)

    assert (finish, message in told) == ("failed", True)
    assert speaker.says('start: "a"') == ("a", [("stop", "")])


def test_a_grammar_that_comes_to_cost_too_much_is_a_failure(babbler, speaker, monkeypatch):
    """What came before was emitted."""
    monkeypatch.setattr(grammars, "MAX_LEXER_STATES", 9)
    limited = Speaker(babbler, speaker.generator)
    text, [(finish, message)] = limited.says('start: "so " /(a|b)*a(a|b){30}/')

    assert text.startswith("so")
    assert (finish, "too many states" in message) == ("failed", True)


def test_a_model_that_never_follows_is_given_up(speaker, monkeypatch):
    """What came before was emitted."""
    monkeypatch.setattr(resuming, "AGAIN_S", 0.05)
    job = speaker.job("start: /(a|b){100000}/", max_tokens=10**5)
    heard = speaker.run(job)

    assert heard.ends == {1: [("astray", "")]}
    assert set(speaker.spelt(heard.ids(job))) <= set("ab")


class Deaf(Heard):
    def emit(self, job, token):
        raise RuntimeError("nobody is there")


@pytest.mark.parametrize("grammar", ["start: /(?s:.*)/", 'start: "forced"'])
def test_an_error_of_who_listens_is_a_failure(speaker, grammar):
    """It reaches the library's thread as no exception: that would end the process."""
    heard = speaker.run(speaker.job(grammar), heard=Deaf())

    assert heard.ends == {1: [("failed", "RuntimeError: nobody is there")]}


@pytest.mark.parametrize(
    ("answer", "message"), [(OSError("gone"), "OSError: gone"), (None, "returned without a token")]
)
def test_an_error_of_the_library_is_a_failure(speaker, answer, message):
    class Broken:
        def generate_batch(self, *_args, **_options):
            if answer is not None:
                raise answer

    job, heard = speaker.job("start: /(?s:.*)/"), Heard()
    run_constrained(Broken(), speaker.vocabulary, speaker.grammars, job, (), heard.emit, heard.ended)
    [(finish, told)] = heard.ends[1]

    assert (finish, message in told) == ("failed", True)
