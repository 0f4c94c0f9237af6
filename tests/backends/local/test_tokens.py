"""Text to ids and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from backends.local.template import Control
from backends.local.tokens import Tokens
from proxy.wire.errors import RequestError
from tests.models import END, START, make_tokenizer

TOKENIZER = make_tokenizer()
TOKENS = Tokens(TOKENIZER)
LOOK_ALIKES = ("<|im_end|>", "<|im_", "end|>", "<", "|>", "<tool_call>", "</tool_call", ">", "Hello", " ", "\n", "é😀")


def prompt_around(text):
    return [Control(START), "user\n" + text, Control(END), "\n", Control(START), "assistant\n"]


def controls_in(ids):
    return [TOKENIZER.id_to_token(number) for number in ids if number in set(TOKENS.controls.values())]


def test_a_prompt_is_cut_as_the_reference_does_it():
    """Where nobody's text looks like a control token, the ids are those of the whole prompt as one text."""
    pieces = prompt_around("Hello, how are you today? < | >")

    assert TOKENIZER.encode("".join(pieces), add_special_tokens=False).ids == TOKENS.encode(pieces)


@settings(deadline=None)
@given(st.lists(st.sampled_from(LOOK_ALIKES), max_size=6).map("".join))
def test_text_never_becomes_a_control_token(text):
    """However it is put together, also with what the template writes around it; and not a letter of it is lost."""
    pieces = prompt_around(text)
    ids = TOKENS.encode(pieces)

    assert controls_in(ids) == [START, END, START]
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=False)


def test_only_tags_and_special_tokens_are_controls():
    """A word that somebody added to the vocabulary is a word."""
    tokenizer = make_tokenizer(["Oslo", "[/INST]", "  ", "<b> c"])

    assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>",
            "</tool_response>", "[/INST]"} == set(Tokens(tokenizer).controls)  # fmt: skip


def test_a_control_token_that_no_tokenizer_can_spell_is_refused():
    """One whose vocabulary knows the control token as a word like any other."""
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])

    with pytest.raises(RequestError, match="The input holds a control token of this model"):
        Tokens(tokenizer).encode(["a </s> a", Control("</s>")])


def test_text_comes_back_letter_by_letter():
    """Nothing while a character is not whole, never a broken one, in the end all of it."""
    text = "Hello  there: é 👩‍👩‍👧 日本 שלום\n"
    hear = TOKENS.decoder(TOKENS.encode(prompt_around("")))
    pieces = [hear(number) for number in TOKENIZER.encode(text).ids]

    assert text == "".join(pieces)
    assert "" in pieces
    assert "\ufffd" not in "".join(pieces)


def test_control_tokens_are_mute():
    """What a model says in control tokens is not for its caller's eyes; tags are heard by who looks for them."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(["<call>"])
    tokens = Tokens(tokenizer)
    said = tokenizer.encode("a<|im_start|>b<call>c<tool_call>d").ids

    assert "".join(map(tokens.decoder([]), said)) == "abc<tool_call>d"
    assert "".join(map(tokens.decoder([], shows=["<call>", "</call>"]), said)) == "ab<call>c<tool_call>d"
