"""Grammars for one vocabulary."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backends.local.decoding import grammar_matcher as grammars
from backends.local.decoding.grammar_matcher import Grammars
from backends.local.grammar import json_schema_grammar
from tests.models import END, make_tokenizer
from tests.patience import patience

TOKENIZER = make_tokenizer()
SIZE = TOKENIZER.get_vocab_size() + 7  # as some models have it: more numbers than tokens
STOP = TOKENIZER.token_to_id(END)


@pytest.fixture(scope="module")
def compiler():
    return Grammars(TOKENIZER.to_str(), SIZE, {STOP})


def spelt(ids):
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


def test_it_tells_what_may_come(compiler):
    matcher = compiler.matcher('start: "a" | "b" "c"')
    a, b, c = (TOKENIZER.encode(letter).ids[0] for letter in "abc")

    assert [matcher.allows(number) for number in (a, b, c, STOP)] == [True, True, False, False]
    assert list(np.flatnonzero(matcher.allowed())) == sorted([a, b])
    assert len(matcher.allowed()) == SIZE


def test_it_tells_what_must_come(compiler):
    matcher = compiler.matcher('start: "Hello, how " ("are" | "is") " it"')
    forced = matcher.forced()
    for number in forced:
        matcher.consume(number)

    assert spelt(forced) == "Hello, how"  # a token may begin with the blank
    assert not matcher.over
    assert matcher.error == ""


def test_it_tells_when_nothing_may_come(compiler):
    matcher = compiler.matcher('start: "a"')
    matcher.consume(matcher.forced()[0])

    assert matcher.over
    assert matcher.allows(STOP)
    assert matcher.error == ""


def test_a_token_that_is_not_allowed_is_told(compiler):
    matcher = compiler.matcher('start: "a"')
    matcher.consume(STOP)

    assert matcher.error != ""
    assert matcher.over


@pytest.mark.parametrize(
    ("grammar", "message"), [("start: b", "unknown name"), ("start: <nope>", "unknown special token"), ("{", "EOF")]
)
def test_what_is_no_grammar_is_refused(compiler, grammar, message):
    with pytest.raises(ValueError, match=message):
        compiler.matcher(grammar)


def test_answers_do_not_disturb_each_other(compiler):
    """They begin with the same compiled grammar, each on its own."""
    first, second = (compiler.matcher('start: "a" "b"') for _ in range(2))
    first.consume(first.forced()[0])

    assert spelt(second.forced()) == "ab"


def test_those_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(grammars, "KEPT", 2)
    compiler = Grammars(TOKENIZER.to_str(), SIZE, {STOP})
    texts = ['start: "a"', 'start: "b"', 'start: "c"']
    for text in (texts[0], texts[1], texts[0], texts[2]):
        compiler.matcher(text)

    assert list(compiler._compiled) == [texts[0], texts[2]]


def test_a_grammar_that_was_used_often_is_compiled_anew(monkeypatch):
    """What all that follow it have learnt adds up, and would come to its limit."""
    monkeypatch.setattr(grammars, "MAX_LEXER_STATES", 150)
    monkeypatch.setattr(grammars, "USES", 4)
    compiler = Grammars(TOKENIZER.to_str(), SIZE, {STOP})
    a, b = (TOKENIZER.encode(letter).ids[0] for letter in "ab")

    def walked(number):
        matcher = compiler.matcher("start: /(a|b)*a(a|b){9}c/")
        for bit in range(9):
            matcher.consume(a if number >> bit & 1 else b)
            matcher.allows(a)
        return matcher.error

    assert [walked(number) for number in range(40)] == [""] * 40

    monkeypatch.setattr(grammars, "USES", 1000)
    errors = [walked(number) for number in range(400)]
    compiler.forget("start: /(a|b)*a(a|b){9}c/")

    assert "too many states" in errors[-1]
    assert walked(0) == ""


def test_many_threads_may_follow_the_same(compiler):
    """They learn together."""

    def walk(number):
        random, matcher = np.random.default_rng(number), compiler.matcher(json_schema_grammar({"type": "object"}))
        for _ in range(200):
            matcher.allows(STOP)
            if matcher.over:
                break
            matcher.consume(int(random.choice(np.flatnonzero(matcher.allowed()))))
        return matcher.error

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(walk, range(64))) == {""}


def test_many_threads_may_ask_at_once():
    compiler = Grammars(TOKENIZER.to_str(), SIZE, {STOP})

    def walk(number):
        matcher = compiler.matcher(f'start: "Hello {number % 5}"')
        return spelt(matcher.forced())

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(walk, range(80)))

    assert found == [f"Hello {number % 5}" for number in range(80)]


HOSTILE = {
    "long texts": {"type": "string", "minLength": 10**5, "maxLength": 10**9},
    "many items": {"type": "array", "items": {"type": "array", "minItems": 10**9}, "minItems": 10**9},
    "many states": {"type": "string", "pattern": "^(.*e.{20}t.*|.*a.{15}o.*){5,}$"},
    "counted patterns": {"type": "string", "pattern": "^(([a-z]{1,30}[aeiou]){1,40}x){1,1000}$"},
    "as many ways": {"anyOf": [{"type": "object", "properties": {"p": {"maxLength": n}}} for n in range(300)]},
    "many names": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}},
    "large enum": {"enum": [f"value {n} {n * 7919 % 1000}" for n in range(5000)]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_step_of_a_hostile_grammar_takes_long(compiler, name):
    """It goes on, or it is told that it costs too much."""
    random = np.random.default_rng(3)
    with patience():
        matcher = compiler.matcher(json_schema_grammar(HOSTILE[name]))
        for _ in range(40):
            matcher.allows(STOP)
            if matcher.over:
                break
            matcher.consume(int(random.choice(np.flatnonzero(matcher.allowed()))))
