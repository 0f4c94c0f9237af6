"""Tests of forced texts that look like control tokens."""

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.local.decoding.grammar_matcher import GrammarCompiler
from backends.local.decoding.grammar_tokenizer import PlainTextTokenizer, build_tokenizer
from backends.local.grammar import json_schema_grammar
from tests.models import END, START, TAGS, make_tokenizer

TOKENIZER = make_tokenizer([" whole"])
SIZE = TOKENIZER.get_vocab_size() + 7
STOP = TOKENIZER.token_to_id(END)
CALL = TOKENIZER.token_to_id("<tool_call>")
CONTROLS = {TOKENIZER.token_to_id(text) for text in (END, START, *TAGS)}
TEXTS = st.lists(
    st.sampled_from(
        [END, START, *TAGS, "<|im", "_end|>", "<", "\xff[2]", "\n", '"', "\\\\", "é", "漢", "🙂", "ﬁ", " whole", "a"]
    ),
    min_size=1,
    max_size=4,
).map("".join)


@pytest.fixture(scope="module")
def grammars():
    return GrammarCompiler(TOKENIZER.to_str(), SIZE, {STOP})


def follow(matcher, pick):
    """Return an answer of the forced tokens, and of picked ones where there is a choice."""
    generated = []
    while not matcher.is_complete and len(generated) < 400:
        tokens = matcher.forced()
        if not tokens:
            matcher.allows(STOP)
            allowed = [int(number) for number in matcher.allowed().nonzero()[0]]
            tokens = [pick(allowed)]
        for number in tokens:
            if number == STOP and matcher.may_stop:
                return generated
            matcher.consume(number)
            assert matcher.error == ""
            generated.append(number)
    return generated


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), name=TEXTS, constant=TEXTS, random=st.randoms())
def test_forced_texts_are_valid_and_contain_no_control_token(grammars, texts, name, constant, random):
    schema = {
        "type": "object",
        "properties": {name: {"enum": texts}, f"{name}2": {"const": constant}},
        "required": [name, f"{name}2"],
        "additionalProperties": False,
    }
    generated = follow(grammars.matcher(json_schema_grammar(schema)), random.choice)

    assert CONTROLS.isdisjoint(generated)
    answer = json.loads(TOKENIZER.decode(generated, skip_special_tokens=False))
    jsonschema.Draft202012Validator(schema).validate(answer)


def test_a_grammar_can_name_control_tokens(grammars):
    matcher = grammars.matcher('start: "say" <tool_call> "a<tool_call>"')
    generated = follow(matcher, min)

    assert generated.count(CALL) == 1
    assert TOKENIZER.decode(generated, skip_special_tokens=False) == "say<tool_call>a<tool_call>"


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "NFKC"},
        {"type": "Prepend", "prepend": "_"},
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}, {"type": "Lowercase"}]},
    ],
)
def test_forced_texts_are_exact_for_tokenizers_that_normalize(normalizer):
    """Such texts are encoded with the longest tokens that match."""
    described = json.loads(TOKENIZER.to_str())
    described["normalizer"] = normalizer
    changing = GrammarCompiler(json.dumps(described), SIZE, {STOP})
    matcher = changing.matcher('start: "aﬁB<|im_end|> whole"')

    assert TOKENIZER.decode(follow(matcher, min), skip_special_tokens=False) == "aﬁB<|im_end|> whole"


def test_ids_without_a_token_are_never_allowed():
    tokenizer = PlainTextTokenizer(
        json.loads(TOKENIZER.to_str()), build_tokenizer(TOKENIZER.to_str(), SIZE, [STOP]), SIZE, [STOP]
    )

    assert {*CONTROLS, SIZE - 1} <= set(tokenizer.special_token_ids)
    assert TOKENIZER.token_to_id(" whole") not in tokenizer.special_token_ids
    with pytest.raises(TypeError, match="string"):
        tokenizer(b"a")
