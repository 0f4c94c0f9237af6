"""Tests of what Python keeps of the library's threads."""

import threading
from functools import partial

import pytest

from backends.local.decoding.batch import run_batch
from backends.local.decoding.constrained import run_constrained
from backends.local.decoding.grammar_matcher import GrammarCompiler
from backends.local.decoding.job import DecodingOptions, Job
from backends.local.decoding.top_logprobs import run_with_top_logprobs
from backends.local.grammar import json_schema_grammar

TOKENS = 9
ANY_OBJECT = json_schema_grammar({"type": "object"})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (run_batch, {}),
        (run_with_top_logprobs, {"top_logprobs": 2}),
        (run_constrained, {"grammar": ANY_OBJECT, "top_logprobs": 0}),
    ],
)
def test_a_thread_of_the_library_keeps_its_state_between_tokens(generator, random_model, kind, options):
    """What is local to the thread is still there at the next one."""
    vocabulary, local, is_new = random_model.vocabulary, threading.local(), []

    def emit(_job, _token):
        is_new.append(not hasattr(local, "is_seen"))
        local.is_seen = True

    if kind is run_constrained:
        tokenizer = (random_model.path / "tokenizer.json").read_text()
        kind = partial(kind, generator, vocabulary, GrammarCompiler(tokenizer, len(vocabulary), {random_model.end}))
    else:
        kind = partial(kind, generator, vocabulary)
    job = Job(1, [5, 6, 7], DecodingOptions(TOKENS, frozenset(), **options))
    kind(*([job] if options.get("grammar") else [[job]]), [], emit, lambda *_: None)

    assert is_new == [True] + [False] * (TOKENS - 1)
