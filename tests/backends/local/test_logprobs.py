"""The logprobs of a text's tokens."""

from backends.local.decoding.job import Token
from backends.local.logprobs import LogprobTracker
from backends.local.speech import Text

TOKEN_BYTES = {1: b"Hel", 2: b"lo", 3: b"\xf0\x9f", 4: b"\x98\x80", 5: b" ", 6: b"<tag>", 7: b"."}


def tokens_of(tokens, *texts, top=0):
    """Return the tokens of each text."""
    tracker = LogprobTracker(TOKEN_BYTES.__getitem__, top)
    for token, text in tokens:
        tracker.add(token, text)
    return [[entry["token"] for entry in tracker.take(text)] for text in texts]


def test_each_token_belongs_to_one_text():
    """The first that has a part of it."""
    tokens = [(Token(1, -1.0), "Hel"), (Token(2, -2.0), "lo")]

    assert tokens_of(tokens, Text("Hello", 0)) == [["Hel", "lo"]]
    assert tokens_of(tokens, Text("Hel", 0), Text("lo", 3)) == [["Hel"], ["lo"]]
    assert tokens_of(tokens, Text("H", 0), Text("el", 1), Text("lo", 3)) == [["Hel"], [], ["lo"]]


def test_a_character_of_several_tokens_has_them_all():
    """They belong to the text of the character, although the first completed no text."""
    tokens = [(Token(1, -1.0), "Hel"), (Token(3, -1.0), ""), (Token(4, -1.0), "\U0001f600"), (Token(3, -1.0), "")]

    assert tokens_of(tokens, Text("Hel", 0), Text("\U0001f600", 3)) == [["Hel"], ["\\xf0\\x9f", "\\x98\\x80"]]


def test_tokens_outside_of_texts_are_dropped():
    """Tags and calls, and the space around them."""
    tokens = [(Token(1, -1.0), "Hel"), (Token(6, -1.0), "<tag>"), (Token(5, -1.0), " "), (Token(7, -1.0), ".")]

    assert tokens_of(tokens, Text("Hel", 0), Text(".", 9)) == [["Hel"], ["."]]


def test_an_entry_has_the_fields_of_the_protocol():
    """With the bytes and the likeliest alternatives; a token that a grammar forced has the logprob 0."""
    tracker = LogprobTracker(TOKEN_BYTES.__getitem__, 1)
    tracker.add(Token(1, -0.5, [(2, -0.25), (1, -0.5)]), "Hel")
    tracker.add(Token(2), "lo")

    assert tracker.take(Text("Hello", 0)) == [
        {
            "token": "Hel",
            "bytes": [72, 101, 108],
            "logprob": -0.5,
            "top_logprobs": [{"token": "lo", "bytes": [108, 111], "logprob": -0.25}],
        },
        {"token": "lo", "bytes": [108, 111], "logprob": 0.0, "top_logprobs": []},
    ]
