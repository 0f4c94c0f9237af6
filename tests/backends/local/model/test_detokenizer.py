"""Generated tokens as text, compared with the library's own stream."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

from backends.local.model.detokenizer import PROMPT_TAIL_TOKENS, Detokenizers, is_byte_level
from tests.models import make_tokenizer

# Added tokens whose characters stand for bytes, in part or not at all; the other tokens are all bytes and some words.
TOKENIZER = make_tokenizer(["é", "ü x", "</a> b", "\ufffd", "日本", "Ġ"])
SIZE = TOKENIZER.get_vocab_size()
BYTES = [TOKENIZER.token_to_id(letter) for letter in "aĠÃ©ðŁĺĢâĤ¬ÿÀ" if TOKENIZER.token_to_id(letter) is not None]
IDS = st.lists(st.one_of(st.sampled_from(BYTES), st.integers(0, SIZE + 2)), max_size=12)


@settings(deadline=None, max_examples=500)
@given(IDS, IDS)
@example([BYTES[-1], SIZE + 2], BYTES[:1])
def test_each_token_has_the_text_that_the_library_gives_it(prompt: list[int], ids: list[int]):
    """Also bytes that are no text, in the prompt too, and ids that no token has."""
    stream = DecodeStream(ids=prompt[-PROMPT_TAIL_TOKENS:], skip_special_tokens=False)
    detokenize = Detokenizers(TOKENIZER).build(prompt, ())

    assert [detokenize(number) for number in ids] == [stream.step(TOKENIZER, number) or "" for number in ids]


def test_a_character_is_returned_when_it_is_complete():
    """The texts of tokens are the same for the next answer."""
    detokenizers, ids = Detokenizers(TOKENIZER), TOKENIZER.encode("a😀b").ids
    answers = [list(map(detokenizers.build([], ()), ids)) for _ in range(2)]

    assert answers[0] == answers[1] == ["a", "", "", "", "😀", "b"]
    assert [*map(detokenizers.build([], {ids[0]}), ids)] == ["", *answers[0][1:]]


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (None, False), (decoders.ByteLevel(), True), (decoders.Metaspace(), False),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]), False),
    ],
)  # fmt: skip
def test_what_else_a_decoder_does_needs_the_stream(decoder: object, *, expected: bool):
    tokenizer = Tokenizer(models.BPE())
    if decoder is not None:
        tokenizer.decoder = decoder

    assert is_byte_level(tokenizer) is expected
