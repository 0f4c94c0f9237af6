"""Tests of compiled grammars and their matchers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backends.local.decoding import grammar_matcher
from backends.local.decoding.grammar_matcher import GrammarCompiler
from backends.local.grammar import json_schema_grammar
from tests.models import END, make_tokenizer
from tests.timeouts import fail_if_stuck

TOKENIZER = make_tokenizer()
SIZE = TOKENIZER.get_vocab_size() + 7  # some models have more ids than tokens
STOP = TOKENIZER.token_to_id(END)


@pytest.fixture(scope="module")
def compiler():
    return GrammarCompiler(TOKENIZER.to_str(), SIZE, {STOP})


def decode(ids):
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


def test_allows_and_allowed_tell_which_tokens_may_come_next(compiler):
    matcher = compiler.matcher('start: "a" | "b" "c"')
    a, b, c = (TOKENIZER.encode(letter).ids[0] for letter in "abc")

    assert [matcher.allows(number) for number in (a, b, c, STOP)] == [True, True, False, False]
    assert list(np.flatnonzero(matcher.allowed())) == sorted([a, b])
    assert len(matcher.allowed()) == SIZE


def test_forced_returns_the_tokens_before_the_first_choice(compiler):
    matcher = compiler.matcher('start: "Hello, how " ("are" | "is") " it"')
    forced = matcher.forced()
    for number in forced:
        matcher.consume(number)

    assert decode(forced) == "Hello, how"  # a token may begin with the space
    assert not matcher.is_complete
    assert matcher.error == ""


def test_a_matcher_is_complete_when_no_token_is_possible(compiler):
    matcher = compiler.matcher('start: "a"')
    matcher.consume(matcher.forced()[0])

    assert matcher.is_complete
    assert matcher.allows(STOP)
    assert matcher.error == ""


def test_a_token_that_is_not_allowed_is_an_error(compiler):
    matcher = compiler.matcher('start: "a"')
    matcher.consume(STOP)

    assert matcher.error != ""
    assert matcher.is_complete


@pytest.mark.parametrize(
    ("grammar", "message"), [("start: b", "unknown name"), ("start: <nope>", "unknown special token"), ("{", "EOF")]
)
def test_an_invalid_grammar_is_refused(compiler, grammar, message):
    with pytest.raises(ValueError, match=message):
        compiler.matcher(grammar)


def test_matchers_of_one_grammar_are_independent(compiler):
    first, second = (compiler.matcher('start: "a" "b"') for _ in range(2))
    first.consume(first.forced()[0])

    assert decode(second.forced()) == "ab"


def test_the_most_recently_used_grammars_are_kept(monkeypatch):
    monkeypatch.setattr(grammar_matcher, "MAX_COMPILED", 2)
    compiler = GrammarCompiler(TOKENIZER.to_str(), SIZE, {STOP})
    texts = ['start: "a"', 'start: "b"', 'start: "c"']
    for text in (texts[0], texts[1], texts[0], texts[2]):
        compiler.matcher(text)

    assert list(compiler._compiled) == [texts[0], texts[2]]


def test_a_grammar_is_compiled_again_after_many_uses(monkeypatch):
    """The states that its matchers discover add up, and would reach the limit."""
    monkeypatch.setattr(grammar_matcher, "MAX_LEXER_STATES", 150)
    monkeypatch.setattr(grammar_matcher, "MAX_USES", 4)
    compiler = GrammarCompiler(TOKENIZER.to_str(), SIZE, {STOP})
    a, b = (TOKENIZER.encode(letter).ids[0] for letter in "ab")

    def walk(number):
        matcher = compiler.matcher("start: /(a|b)*a(a|b){9}c/")
        for bit in range(9):
            matcher.consume(a if number >> bit & 1 else b)
            matcher.allows(a)
        return matcher.error

    assert [walk(number) for number in range(40)] == [""] * 40

    monkeypatch.setattr(grammar_matcher, "MAX_USES", 1000)
    errors = [walk(number) for number in range(400)]
    compiler.forget("start: /(a|b)*a(a|b){9}c/")

    assert "too many states" in errors[-1]
    assert walk(0) == ""


def test_several_threads_can_follow_one_grammar(compiler):
    """They share its states."""

    def walk(number):
        random, matcher = np.random.default_rng(number), compiler.matcher(json_schema_grammar({"type": "object"}))
        for _ in range(200):
            matcher.allows(STOP)
            if matcher.is_complete:
                break
            matcher.consume(int(random.choice(np.flatnonzero(matcher.allowed()))))
        return matcher.error

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(walk, range(64))) == {""}


def test_several_threads_can_compile_at_once():
    compiler = GrammarCompiler(TOKENIZER.to_str(), SIZE, {STOP})

    def walk(number):
        matcher = compiler.matcher(f'start: "Hello {number % 5}"')
        return decode(matcher.forced())

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(walk, range(80)))

    assert found == [f"Hello {number % 5}" for number in range(80)]


HOSTILE = {
    "long texts": {"type": "string", "minLength": 10**5, "maxLength": 10**9},
    "many items": {"type": "array", "items": {"type": "array", "minItems": 10**9}, "minItems": 10**9},
    "many states": {"type": "string", "pattern": "^(.*e.{20}t.*|.*a.{15}o.*){5,}$"},
    "counted patterns": {"type": "string", "pattern": "^(([a-z]{1,30}[aeiou]){1,40}x){1,1000}$"},
    "many alternatives": {"anyOf": [{"type": "object", "properties": {"p": {"maxLength": n}}} for n in range(300)]},
    "many names": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}},
    "large enum": {"enum": [f"value {n} {n * 7919 % 1000}" for n in range(5000)]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_step_of_a_hostile_grammar_takes_long(compiler, name):
    """The matcher continues, or fails with a cost limit."""
    random = np.random.default_rng(3)
    with fail_if_stuck():
        matcher = compiler.matcher(json_schema_grammar(HOSTILE[name]))
        for _ in range(40):
            matcher.allows(STOP)
            if matcher.is_complete:
                break
            matcher.consume(int(random.choice(np.flatnonzero(matcher.allowed()))))
