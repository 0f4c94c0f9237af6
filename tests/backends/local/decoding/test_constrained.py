"""Tests of answers under a grammar, decoded by real models."""

import json
from collections import Counter

import ctranslate2
import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from backends.local.decoding import constrained, grammar_matcher, restarts
from backends.local.decoding.constrained import run_constrained
from backends.local.decoding.grammar_matcher import GrammarCompiler
from backends.local.decoding.job import DecodingOptions, Job, Token
from backends.local.decoding.sampling import choose_token
from backends.local.grammar import json_schema_grammar
from tests.backends.local.decoding.run_log import RunLog
from tests.backends.local.json_schemas import schemas
from tests.backends.local.tiny_models import open_tiny_model
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


class RunCounter:
    """The generator of the library, with a counter of calls."""

    def __init__(self, generator):
        self.generator, self.calls, self.device = generator, 0, generator.device

    def generate_batch(self, *args, **options):
        self.calls += 1
        return self.generator.generate_batch(*args, **options)


class ConstrainedModel:
    """A model that runs jobs under grammars."""

    def __init__(self, model, generator):
        self.vocabulary, self.end, self.generator = model.vocabulary, model.end, generator
        self.tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
        self.grammars = GrammarCompiler(self.tokenizer.to_str(), len(model.vocabulary), {model.end})

    def job(self, grammar, max_tokens=300, prompt="Hello, how are you?", **other):
        stop = other.pop("stop_ids", {self.end})
        prompt = prompt if isinstance(prompt, list) else self.tokenizer.encode(prompt).ids
        return Job(1, prompt, DecodingOptions(max_tokens, frozenset(stop), grammar=grammar, **other))

    def run(self, job, prefix_tokens=0, run_log=None):
        run_log = run_log or RunLog()
        run_constrained(
            self.generator, self.vocabulary, self.grammars, job, job.prompt[:prefix_tokens], run_log.emit, run_log.end
        )
        return run_log

    def answer(self, grammar, **other):
        job = self.job(grammar, **other)
        run_log = self.run(job)
        return self.decode(run_log.ids(job)), run_log.ends[1]

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def model(random_model):
    with random_model.loaded() as generator:
        yield ConstrainedModel(random_model, generator)


@pytest.fixture(scope="module")
def exact(random_model):
    """The same model with exact floats, so that the number of calls does not change its answers."""
    return ConstrainedModel(random_model, ctranslate2.Generator(str(random_model.path), compute_type="float32"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(schema=schemas(), temperature=st.sampled_from([0.0, 1.0]), word=st.text("abcdefgh ", min_size=2, max_size=9))
def test_complete_answers_follow_their_schema(model, schema, temperature, word):
    """With any schema and model: an answer that ends by itself is valid, others are cut off."""
    text, [(finish, message)] = model.answer(
        json_schema_grammar(schema), prompt=word + "??", temperature=temperature, max_tokens=200
    )

    assert (finish, message) in [("stop", ""), ("length", "")]
    if finish == "stop":
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def decode_stepwise(model, job):
    """Decode with one call for each token, choosing the best token that the grammar allows."""
    matcher, generated = model.grammars.matcher(job.options.grammar), []
    while not matcher.is_complete and len(generated) < job.options.max_tokens:
        prompt = [model.vocabulary[number] for number in [*job.prompt, *generated]]
        (result,) = model.generator.generate_batch(
            [prompt], max_length=1, include_prompt_in_result=False, end_token=[], return_logits_vocab=True
        )
        matcher.allows(0)
        generated.append(
            choose_token(np.array(result.logits[0][0]), matcher.allowed(), job.options, np.random.default_rng())
        )
        if generated[-1] == model.end:
            return generated[:-1]
        matcher.consume(generated[-1])
    return generated


@pytest.mark.parametrize("schema", [PERSON, {"type": "object"}, {"enum": ["warmer", "warm", "warmest"]}], ids=str)
def test_greedy_answers_equal_those_of_one_call_for_each_token(exact, schema):
    equal = 0
    for number in range(20):
        job = exact.job(json_schema_grammar(schema), max_tokens=60, prompt=f"What is {number} {number * 7}?")
        equal += exact.run(job).ids(job) == decode_stepwise(exact, job)

    assert equal == 20


def test_sampling_follows_the_distribution_of_the_allowed_tokens(model):
    """Accepting or replacing the token of the library gives the right distribution."""
    job = model.job('start: "H" | "W" | "s" | "t" | "o"', max_tokens=1, temperature=1.5)
    ids = [model.tokenizer.encode(letter).ids[0] for letter in "HWsto"]
    (result,) = model.generator.generate_batch(
        [[model.vocabulary[number] for number in job.prompt]], max_length=1, include_prompt_in_result=False,
        end_token=[], return_logits_vocab=True,
    )  # fmt: skip
    weights = np.exp(np.array(result.logits[0][0])[ids] / 1.5)
    found = Counter(model.run(job).ids(job)[0] for _ in range(1500))

    assert [found[number] / 1500 for number in ids] == pytest.approx(list(weights / weights.sum()), abs=0.06)


def test_forced_answers_need_no_call(model):
    """When the grammar allows one text only."""
    job, run_log = model.job(json_schema_grammar({"const": {"a": [1, "two"]}})), RunLog()
    run_constrained(None, model.vocabulary, model.grammars, job, (), run_log.emit, run_log.end)

    assert model.decode(run_log.ids(job)) == '{"a": [1, "two"]}'
    assert run_log.tokens[1][0] == Token(run_log.ids(job)[0])
    assert run_log.ends == {1: [("stop", "")]}


def test_a_model_that_follows_its_grammar_is_called_once(tmp_path):
    tiny = open_tiny_model(write_model(tmp_path, ['{"name": "', "Ann", '", "age": ', "7", "}"]))
    with tiny.loaded() as generator:
        counting = RunCounter(generator)
        model = ConstrainedModel(tiny, counting)
        schema = {
            **PERSON,
            "properties": {name: PERSON["properties"][name] for name in ("name", "age")},
            "required": ["name", "age"],
        }
        answer = model.answer(json_schema_grammar(schema))

        assert answer == ('{"name": "Ann", "age": 7}', [("stop", "")])
        assert counting.calls == 1


def test_a_model_that_ends_too_early_continues(greeting_model):
    """The end token is a token like others: the grammar decides when it may come."""
    with greeting_model.loaded() as generator:
        text, ends = ConstrainedModel(greeting_model, generator).answer("start: /[A-Za-z !]{20}/", prompt="\n\n\n")

    assert text.startswith("Hello there!")
    assert len(text) == 20
    assert ends == [("stop", "")]


def test_an_answer_ends_where_model_and_grammar_agree(greeting_model):
    with greeting_model.loaded() as generator:
        answer = ConstrainedModel(greeting_model, generator).answer("start: /(?s:.*)/", prompt="\n\n\n")

    assert answer == ("Hello there!", [("stop", "")])


def test_a_tag_is_one_token(model):
    """Without quotes in the grammar, and one token in the answer."""
    job = model.job('start: <tool_call> ("yes" | "no") </tool_call>')
    ids = model.run(job).ids(job)

    assert model.decode(ids) in ("<tool_call>yes</tool_call>", "<tool_call>no</tool_call>")
    assert [model.vocabulary[ids[0]], model.vocabulary[ids[-1]]] == ["<tool_call>", "</tool_call>"]


@pytest.mark.parametrize("limit", range(1, 12))
def test_the_limit_counts_forced_tokens(exact, limit):
    grammar = json_schema_grammar(PERSON)
    whole, cut = exact.job(grammar), exact.job(grammar, max_tokens=limit)
    run_log = exact.run(cut)

    assert run_log.ids(cut) == exact.run(whole).ids(whole)[:limit]
    assert run_log.ends == {1: [("length", "")]}


@pytest.mark.parametrize("steps", [1, 3])
def test_a_long_answer_is_decoded_in_several_calls(exact, monkeypatch, steps):
    job = exact.job(json_schema_grammar(PERSON))
    whole = exact.run(job).ids(job)
    monkeypatch.setattr(constrained, "MAX_STEPS", steps)

    assert exact.run(job).ids(job) == whole


def test_a_kept_prefix_does_not_change_the_answer(exact):
    """Neither from the first call on nor when it is extended later."""
    job = exact.job(json_schema_grammar(PERSON), prompt="Hello, how are you today? " * 9)
    later = RunLog()
    run_constrained(
        exact.generator, exact.vocabulary, exact.grammars, job, (), later.emit, later.end,
        extend_prefix=lambda: len(job.prompt) - 2,
    )  # fmt: skip

    assert exact.run(job, prefix_tokens=len(job.prompt) - 2).ids(job) == exact.run(job).ids(job) == later.ids(job)


def test_only_interrupted_answers_extend_their_prefix(model, tmp_path):
    """Memory is scarce."""
    calls = []

    def extend_prefix():
        calls.append("extend_prefix")
        return 0

    tiny = open_tiny_model(write_model(tmp_path, ["{", '"a"', ": 1", "}"]))
    with tiny.loaded() as generator:
        follower = ConstrainedModel(tiny, generator)
        for each, grammar in ((follower, "start: /(?s:.*)/"), (model, 'start: /[a-z]{9}/ " so " /[0-9]{5}/')):
            job, run_log = each.job(grammar, max_tokens=40), RunLog()
            run_constrained(
                each.generator, each.vocabulary, each.grammars, job, (), run_log.emit, run_log.end,
                extend_prefix=extend_prefix,
            )  # fmt: skip
            calls.append("follower" if each is follower else "interrupted")

    assert calls == ["follower", "extend_prefix", "interrupted"]


@pytest.mark.parametrize("temperature", [0, 1])
def test_each_token_comes_with_the_logprobs_of_the_model(exact, temperature):
    """Also forced tokens: the model generates each of them before the grammar is applied."""
    job = exact.job(json_schema_grammar(PERSON), top_logprobs=3, temperature=temperature)
    run_log, generated = exact.run(job), []
    for token in run_log.tokens[1]:
        prompt = [exact.vocabulary[number] for number in [*job.prompt, *generated]]
        (result,) = exact.generator.generate_batch(
            [prompt], max_length=1, include_prompt_in_result=False, end_token=[], return_logits_vocab=True
        )
        logits = np.array(result.logits[0][0])

        assert token.logprob == pytest.approx(logits[token.id] - np.log(np.exp(logits).sum()), abs=1e-3)
        assert [number for number, _ in token.top] == list(np.argsort(-logits)[:3])
        generated.append(token.id)
    assert json.loads(exact.decode(generated)).keys() == PERSON["properties"].keys()


@pytest.mark.parametrize("logprobs", [None, 0])
def test_forced_texts_may_contain_names_of_control_tokens(model, logprobs):
    """As plain text; the answer continues after them."""
    schema = {"type": "object", "properties": {"<|im_start|>": {"enum": ["<|im_end|>"]}}, "required": ["<|im_start|>"]}
    grammar = json_schema_grammar(schema | {"additionalProperties": False})

    assert model.answer(grammar, top_logprobs=logprobs) == ('{"<|im_start|>": "<|im_end|>"}', [("stop", "")])


def test_a_forced_stop_token_does_not_end_the_answer(model):
    job = model.job('start: "a" "b" "c"', stop_ids={model.tokenizer.encode("b").ids[0]})
    run_log = model.run(job)

    assert model.decode(run_log.ids(job)) == "abc"
    assert run_log.ends[1] == [("stop", "")]


class CancellingLog(RunLog):
    """Cancels the job after this many tokens."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def emit(self, job, token):
        super().emit(job, token)
        job.cancelled = len(self.ids(job)) >= self.after


def test_it_ends_when_it_is_cancelled(model):
    """At the next token."""
    job = model.job("start: /(?s:.*)/", max_tokens=10**6)
    run_log = model.run(job, run_log=CancellingLog(5))

    assert len(run_log.ids(job)) == 5
    assert run_log.ends == {1: [("stop", "")]}


def test_a_job_that_was_cancelled_before_needs_no_call(model):
    job = model.job("start: /(?s:.*)/")
    job.cancelled = True
    counting = RunCounter(model.generator)
    run_log = RunLog()
    run_constrained(counting, model.vocabulary, model.grammars, job, (), run_log.emit, run_log.end)

    assert (counting.calls, run_log.ends) == (0, {1: [("stop", "")]})


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: b", "unknown name"),
        ("start: <nope>", "unknown special token"),
    ],
)
def test_an_invalid_grammar_fails_its_job(model, grammar, message):
    """The next job is not affected."""
    _, [(finish, error)] = model.answer(grammar, temperature=1)

    assert (finish, message in error, " at " in error) == ("failed", False, True)
    assert model.answer('start: "a"') == ("a", [("stop", "")])


def test_a_grammar_that_reaches_its_cost_limit_fails_the_job(random_model, model, monkeypatch):
    """The tokens before are emitted."""
    monkeypatch.setattr(grammar_matcher, "MAX_LEXER_STATES", 9)
    limited = ConstrainedModel(random_model, model.generator)
    text, [(finish, message)] = limited.answer('start: "so " /(a|b)*a(a|b){30}/')

    assert text.startswith("so")
    assert (finish, "too many states" in message, " at " in message) == ("failed", False, True)


def test_a_model_that_never_follows_its_grammar_is_given_up(model, monkeypatch):
    """The tokens before are emitted."""
    monkeypatch.setattr(restarts, "MAX_REREAD_S", 0.05)
    job = model.job("start: /(a|b){100000}/", max_tokens=10**5)
    run_log = model.run(job)

    assert run_log.ends == {1: [("constraint_failed", "")]}
    assert set(model.decode(run_log.ids(job))) <= set("ab")


class FailingLog(RunLog):
    def emit(self, job, token):
        raise RuntimeError("no receiver")


@pytest.mark.parametrize("grammar", ["start: /(?s:.*)/", 'start: "forced"'])
def test_an_exception_of_emit_fails_the_job(model, grammar):
    """It must not reach the thread of the library: that would end the process."""
    run_log = model.run(model.job(grammar), run_log=FailingLog())

    ((finish, message),) = run_log.ends[1]
    assert finish == "failed"
    assert message.startswith("RuntimeError at ")


@pytest.mark.parametrize(
    ("answer", "message"), [(OSError("gone"), "OSError: gone"), (None, "returned without a token")]
)
def test_an_error_of_the_library_fails_the_job(model, answer, message):
    class FailingGenerator:
        def generate_batch(self, *_args, **_options):
            if answer is not None:
                raise answer

    job, run_log = model.job("start: /(?s:.*)/"), RunLog()
    run_constrained(FailingGenerator(), model.vocabulary, model.grammars, job, (), run_log.emit, run_log.end)
    [(finish, error)] = run_log.ends[1]

    assert (finish, message in error, " at " in error) == ("failed", False, True)
