"""Which tokens a text is made of."""

from backends.local.decoding.job import Token
from backends.local.logprobs import Logprobs
from backends.local.speech import Text

SPELT = {1: b"Hel", 2: b"lo", 3: b"\xf0\x9f", 4: b"\x98\x80", 5: b" ", 6: b"<tag>", 7: b"."}


def told(heard, *texts, top=0):
    """The tokens of each text."""
    logprobs = Logprobs(SPELT.__getitem__, top)
    for token, text in heard:
        logprobs.hear(token, text)
    return [[entry["token"] for entry in logprobs.of(text)] for text in texts]


def test_each_token_is_told_with_its_text():
    """And only once, with the first text that has a part of it."""
    heard = [(Token(1, -1.0), "Hel"), (Token(2, -2.0), "lo")]

    assert told(heard, Text("Hello", 0)) == [["Hel", "lo"]]
    assert told(heard, Text("Hel", 0), Text("lo", 3)) == [["Hel"], ["lo"]]
    assert told(heard, Text("H", 0), Text("el", 1), Text("lo", 3)) == [["Hel"], [], ["lo"]]


def test_a_character_of_several_tokens_has_them_all():
    """They are told with it, though the first brought no text."""
    heard = [(Token(1, -1.0), "Hel"), (Token(3, -1.0), ""), (Token(4, -1.0), "\U0001f600"), (Token(3, -1.0), "")]

    assert told(heard, Text("Hel", 0), Text("\U0001f600", 3)) == [["Hel"], ["\\xf0\\x9f", "\\x98\\x80"]]


def test_what_is_left_out_of_the_text_is_not_told():
    """Tags and calls, and the space around them."""
    heard = [(Token(1, -1.0), "Hel"), (Token(6, -1.0), "<tag>"), (Token(5, -1.0), " "), (Token(7, -1.0), ".")]

    assert told(heard, Text("Hel", 0), Text(".", 9)) == [["Hel"], ["."]]


def test_an_entry_is_as_the_protocol_has_it():
    """With the bytes, and the likeliest tokens in the place; what a grammar forced was certain."""
    logprobs = Logprobs(SPELT.__getitem__, 1)
    logprobs.hear(Token(1, -0.5, [(2, -0.25), (1, -0.5)]), "Hel")
    logprobs.hear(Token(2), "lo")

    assert logprobs.of(Text("Hello", 0)) == [
        {
            "token": "Hel",
            "bytes": [72, 101, 108],
            "logprob": -0.5,
            "top_logprobs": [{"token": "lo", "bytes": [108, 111], "logprob": -0.25}],
        },
        {"token": "lo", "bytes": [108, 111], "logprob": 0.0, "top_logprobs": []},
    ]
