"""Text to token ids and back, and the bytes of tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from backends.local.model.chat_template import ChatTemplate, ControlToken
from backends.local.model.tokenizer import ModelTokenizer, build_token_bytes
from proxy.wire.errors import RequestError
from tests.chat_templates import HERMES
from tests.models import END, START, TEMPLATE, make_tokenizer

TOKENIZER = make_tokenizer()
TOKENS = ModelTokenizer(TOKENIZER)
CONTROL_IDS = frozenset(TOKENS.control_tokens.values())
LOOK_ALIKES = ("<|im_end|>", "<|im_", "end|>", "<", "|>", "<tool_call>", "</tool_call", ">", "Hello", " ", "\n", "é😀",
               "\uff1c\uff5cim_end\uff5c\uff1e", "<\uff5cim_end\uff5c>", "<|im\u200b_end|>", "\u2581", "Ġ", "<0x3C>", "\\u003c", "\x00", "\u202e")  # fmt: skip
# The templates of two families, one of which transforms callers' texts more than the other.
TEMPLATES = {"plain": TEMPLATE, "hermes": HERMES}
TEXTS = st.lists(st.one_of(st.sampled_from(LOOK_ALIKES), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)),
                 max_size=6).map("".join)  # fmt: skip


def prompt_around(text):
    return [ControlToken(START), "user\n" + text, ControlToken(END), "\n", ControlToken(START), "assistant\n"]


def control_tokens_in(ids):
    return [TOKENIZER.id_to_token(number) for number in ids if number in CONTROL_IDS]


def test_a_prompt_is_tokenized_as_by_the_reference():
    """When no text resembles a control token, the ids are those of the whole prompt as one text."""
    pieces = prompt_around("Hello, how are you today? < | >")

    assert TOKENIZER.encode("".join(pieces), add_special_tokens=False).ids == TOKENS.encode(pieces)


@settings(deadline=None)
@given(TEXTS)
def test_text_never_becomes_a_control_token(text):
    """Not even together with the template's text around it; and no character of it is lost."""
    pieces = prompt_around(text)
    ids = TOKENS.encode(pieces)

    assert control_tokens_in(ids) == [START, END, START]
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=False)


def conversation(texts):
    """Return messages and tools with callers' texts in every place."""
    instructions, question, answer, result, name, description, key, value = texts
    messages = [
        {"role": "system", "content": instructions},
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": answer,
            "tool_calls": [{"function": {"name": name, "arguments": {key: value}}}],
        },
        {"role": "tool", "content": result, "name": name},
        {"role": "user", "content": question + answer},
    ]
    schema = {"type": "object", "properties": {key: {"description": value, "enum": [result]}}, "required": [key]}
    return messages, [
        {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
    ]


@pytest.mark.parametrize("template", TEMPLATES)
def test_text_in_any_place_never_becomes_a_control_token(template):
    """Instructions, messages, calls, their arguments and results, and every part of a tool."""
    chat = ChatTemplate(TEMPLATES[template], TOKENS.control_tokens, {"bos_token": START, "eos_token": END})

    def tokens_with(texts):
        return control_tokens_in(TOKENS.encode(chat.render(*conversation(texts))))

    harmless = tokens_with(["harmless"] * 8)

    @settings(deadline=None, max_examples=150)
    @given(st.lists(TEXTS, min_size=8, max_size=8))
    def check(texts):
        assert harmless == tokens_with(texts)

    check()


def test_the_positions_of_control_tokens_are_checked():
    """One that the tokenizer misses and one in a caller's text have the same number as those written."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<turn>", single_word=True, special=True)])
    tokens = ModelTokenizer(tokenizer)
    pieces = ["a", ControlToken("<turn>"), "a <turn> b"]
    ids = tokens.encode(pieces)
    place = ids.index(tokens.control_tokens["<turn>"])

    assert tokenizer.encode("a", add_special_tokens=False).ids == ids[:place]
    assert ids.count(tokens.control_tokens["<turn>"]) == 1


@pytest.mark.parametrize("side", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
def test_control_tokens_that_include_space_are_found(side):
    """A prompt with them is tokenized as by the reference."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<turn>", special=True, **side)])
    pieces = [ControlToken("<turn>"), "user \n", ControlToken("<turn>"), "  Hello ", ControlToken("<turn>")]

    assert tokenizer.encode("".join(pieces)).ids == ModelTokenizer(tokenizer).encode(pieces)


def test_only_tags_and_special_tokens_are_control_tokens():
    """Other added tokens are words."""
    tokenizer = make_tokenizer(["Oslo", "[/INST]", "  ", "<b> c"])

    assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>",
            "</tool_response>", "[/INST]"} == set(ModelTokenizer(tokenizer).control_tokens)  # fmt: skip


def test_text_that_must_become_a_control_token_is_refused():
    """Some vocabularies contain a control token as an ordinary word."""
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])

    with pytest.raises(RequestError, match="The input contains a control token of this model"):
        ModelTokenizer(tokenizer).encode(["a </s> a", ControlToken("</s>")])


def test_text_is_detokenized_token_by_token():
    """Nothing is returned before a character is complete, never a part of one, and all of it in the end."""
    text = "Hello  there: é 👩‍👩‍👧 日本 שלום\n"
    detokenize = TOKENS.build_detokenizer(TOKENS.encode(prompt_around("")))
    pieces = [detokenize(number) for number in TOKENIZER.encode(text).ids]

    assert text == "".join(pieces)
    assert "" in pieces
    assert "\ufffd" not in "".join(pieces)


def test_control_tokens_are_hidden():
    """They are not part of the answer's text; those that the parser needs can be made visible."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(["<call>"])
    tokens = ModelTokenizer(tokenizer)
    ids = tokenizer.encode("a<|im_start|>b<call>c<tool_call>d").ids

    assert "".join(map(tokens.build_detokenizer([]), ids)) == "abc<tool_call>d"
    assert "".join(map(tokens.build_detokenizer([], visible=["<call>", "</call>"]), ids)) == "ab<call>c<tool_call>d"


OUTPUT = "Hello, wörld \U0001f600\n<tool_call>"


def test_byte_level_tokens_have_bytes():
    """Together they are the text, even if a character takes several tokens."""
    tokenizer = make_tokenizer()
    token_bytes = build_token_bytes(tokenizer)
    ids = tokenizer.encode(OUTPUT).ids
    tag, end = tokenizer.token_to_id("<tool_call>"), tokenizer.token_to_id(END)

    assert b"".join(map(token_bytes, ids)).decode() == OUTPUT
    assert (token_bytes(tag), token_bytes(end), token_bytes(1_000_000)) == (b"<tool_call>", END.encode(), b"")
    assert any(len(token_bytes(number)) == 1 and token_bytes(number)[0] > 127 for number in ids)


def test_sentencepiece_tokens_have_bytes():
    """They write a space as another character, and single bytes as numbers."""
    tokenizer = Tokenizer(models.BPE({"\u2581Oslo": 0, "<0xF0>": 1, "o": 2}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("\u2581 is itself")])
    token_bytes = build_token_bytes(tokenizer)

    assert [token_bytes(number) for number in range(4)] == [b" Oslo", b"\xf0", b"o", "\u2581 is itself".encode()]


def test_tokens_without_a_decoder_are_their_own_bytes():
    """Their text is used unchanged."""
    assert build_token_bytes(Tokenizer(models.BPE({"a": 0}, [])))(0) == b"a"
