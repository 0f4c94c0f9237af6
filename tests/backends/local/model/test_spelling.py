"""The bytes of tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models

from backends.local.model.spelling import spelling
from tests.models import END, make_tokenizer

SAID = "Hello, wörld \U0001f600\n<tool_call>"


def test_tokens_of_bytes():
    """Together they are the text, also where a character takes several."""
    tokenizer = make_tokenizer()
    spell = spelling(tokenizer)
    ids = tokenizer.encode(SAID).ids
    tag, end = tokenizer.token_to_id("<tool_call>"), tokenizer.token_to_id(END)

    assert b"".join(map(spell, ids)).decode() == SAID
    assert (spell(tag), spell(end), spell(1_000_000)) == (b"<tool_call>", END.encode(), b"")
    assert any(len(spell(number)) == 1 and spell(number)[0] > 127 for number in ids)


def test_tokens_of_letters():
    """A space is written as another letter, and bytes as numbers."""
    tokenizer = Tokenizer(models.BPE({"\u2581Oslo": 0, "<0xF0>": 1, "o": 2}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("\u2581 is itself")])
    spell = spelling(tokenizer)

    assert [spell(number) for number in range(4)] == [b" Oslo", b"\xf0", b"o", "\u2581 is itself".encode()]


def test_tokenizers_without_a_decoder():
    """Their tokens are as they are written."""
    assert spelling(Tokenizer(models.BPE({"a": 0}, [])))(0) == b"a"
