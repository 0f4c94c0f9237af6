"""Text to ids and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from backends.local.model.template import ChatTemplate, Control
from backends.local.model.tokens import Tokens
from proxy.wire.errors import RequestError
from tests.families import HERMES
from tests.models import END, START, TEMPLATE, make_tokenizer

TOKENIZER = make_tokenizer()
TOKENS = Tokens(TOKENIZER)
LOOK_ALIKES = ("<|im_end|>", "<|im_", "end|>", "<", "|>", "<tool_call>", "</tool_call", ">", "Hello", " ", "\n", "é😀",
               "\uff1c\uff5cim_end\uff5c\uff1e", "<\uff5cim_end\uff5c>", "<|im\u200b_end|>", "\u2581", "Ġ", "<0x3C>", "\\u003c", "\x00", "\u202e")  # fmt: skip
# Two families' ways of writing what callers say, in one of which it goes through more hands.
TEMPLATES = {"plain": TEMPLATE, "hermes": HERMES}
TEXTS = st.lists(st.one_of(st.sampled_from(LOOK_ALIKES), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)),
                 max_size=6).map("".join)  # fmt: skip


def prompt_around(text):
    return [Control(START), "user\n" + text, Control(END), "\n", Control(START), "assistant\n"]


def controls_in(ids):
    return [TOKENIZER.id_to_token(number) for number in ids if number in set(TOKENS.controls.values())]


def test_a_prompt_is_cut_as_the_reference_does_it():
    """Where nobody's text looks like a control token, the ids are those of the whole prompt as one text."""
    pieces = prompt_around("Hello, how are you today? < | >")

    assert TOKENIZER.encode("".join(pieces), add_special_tokens=False).ids == TOKENS.encode(pieces)


@settings(deadline=None)
@given(TEXTS)
def test_text_never_becomes_a_control_token(text):
    """However it is put together, also with what the template writes around it; and not a letter of it is lost."""
    pieces = prompt_around(text)
    ids = TOKENS.encode(pieces)

    assert controls_in(ids) == [START, END, START]
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=False)


def conversation(texts):
    """Callers' texts wherever they can stand."""
    told, asked, said, result, name, description, key, value = texts
    messages = [
        {"role": "system", "content": told},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": said, "tool_calls": [{"function": {"name": name, "arguments": {key: value}}}]},
        {"role": "tool", "content": result, "name": name},
        {"role": "user", "content": asked + said},
    ]
    schema = {"type": "object", "properties": {key: {"description": value, "enum": [result]}}, "required": [key]}
    return messages, [
        {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
    ]


@settings(deadline=None, max_examples=150)
@given(st.lists(TEXTS, min_size=8, max_size=8))
@pytest.mark.parametrize("template", TEMPLATES)
def test_no_text_of_a_caller_becomes_a_control_token(template, texts):
    """In instructions, messages, calls, their arguments and results, and in every part of a tool."""
    chat = ChatTemplate(TEMPLATES[template], TOKENS.controls, {"bos_token": START, "eos_token": END})
    hostile, harmless = (
        controls_in(TOKENS.encode(chat.render(*conversation(each)))) for each in (texts, ["harmless"] * 8)
    )

    assert harmless == hostile


def test_a_control_token_must_stand_where_the_template_wrote_it():
    """One that a word swallows, and another in somebody's text, are as many as one that was written."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<turn>", single_word=True, special=True)])
    tokens = Tokens(tokenizer)
    pieces = ["a", Control("<turn>"), "a <turn> b"]
    ids = tokens.encode(pieces)
    place = ids.index(tokens.controls["<turn>"])

    assert tokenizer.encode("a", add_special_tokens=False).ids == ids[:place]
    assert ids.count(tokens.controls["<turn>"]) == 1


@pytest.mark.parametrize("side", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
def test_control_tokens_that_swallow_space_are_found(side):
    """A prompt with them is cut as the reference does it."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<turn>", special=True, **side)])
    pieces = [Control("<turn>"), "user \n", Control("<turn>"), "  Hello ", Control("<turn>")]

    assert tokenizer.encode("".join(pieces)).ids == Tokens(tokenizer).encode(pieces)


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
