"""Keys of many kinds are found in texts, and ordinary texts stay as they are."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import key_patterns
from proxy.wire.key_patterns import LONGEST_NAME_CHARS, MAX_NAMES, REDACTED, KeyFinder, has_key, redact_keys
from tests.timeouts import fail_if_stuck

PEM = "-----BEGIN {0} KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEowIBAAKCAQEA7b\nx+/=\n-----END {0} KEY-----"
KEYS = [
    "sk-proj-abcdefghijklmnop1234", "sk-ant-api03-abcdefghijkl_mnop", "sk_live_4eC39HqLyjWDarjt", "rk_test_abcdefghijkl",
    "hg_4N5UAyfS8pBK7w1MFmQTMbjs8aOk9ud9xWZ", "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11ABCDEFG0abcdefghij_klmnop", "glpat-abcdefghijklmnopqrst", "xoxb-123456789012-abcdefghijkl",
    "xapp-1-A0123456789-abcdefgh", "hf_abcdefghijklmnopqrstuvwxyz", "npm_abcdefghijklmnopqrstuvwxyz0123456789",
    "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "AIzaSyA-abcdefghijklmnopqrstuvwxyz012345",
    "ya29.a0AfH6SMBabcdefghijklmnop", "GOCSPX-abcdefghijklmnop", "SG.abcdefghijklmnop.qrstuvwxyz012345",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "Bearer abc.def", "bearer   0123456789", "hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXX",
    "AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ",
    "sk%2Dproj%2Dabcdefghijklmnop1234", "sk%2dabcdefghijklmnop1234", "hf%5Fabcdefghijklmnopqrstuvwxyz",
    "glpat%2Dabcdefghij%5Fklmnopqrst", "Basic dXNlcjpwYXNzd29yZA==", "basic  YWRhOmh1bnRlcjJodW50ZXIy",
    *(PEM.format(kind) for kind in ("RSA PRIVATE", "EC PRIVATE", "PRIVATE", "OPENSSH PRIVATE", "ENCRYPTED PRIVATE")),
    PEM.format("PRIVATE").partition("x+")[0], PEM.format("PRIVATE").replace("\n", "\\n"),
]  # fmt: skip
NAMED = [
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalr"), ('{"password": "hunter2hunter2"}', "hunter2"),
    ("API_KEY='0123456789abcdef'", "0123"), ("postgres://user:s3cretpass@db.example.com/x", "s3cret"),
    ('{\\"api_key\\":\\"0123456789abcdef\\"}', "0123"), ("client_secret=0123456789abcdef&x=1", "0123"),
    ("redis://:hunter2secret@cache:6379/0", "hunter2"), ("pk_1234567_ABCDEFGHIJKLMNOP", "ABCDEF"),
    ("Bearer token.0123", "0123"), ("bearer tokens-0123", "0123"), ("password: expected0123", "0123"),
]  # fmt: skip
TEXTS = [
    "", "Hello there.", "The secret of a good cake is butter.", "https://example.com:8080/a?b=c", "My password is short",
    "sk-short", "a risk-free-investment-of-ours", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "task-abcdefghijklmnop", "import os\nkey = os.environ['X']", "mailto:ada@example.com", "the bearer", "a: b, c; d",
    "Token counts: 123456789", "ratio 3:4@5",
    "The model 'hf-llama-3-70b-instruct' does not exist.", "npm-registry-mirror-1", "hf_hub_tokenizer_path",
    "metadata.pk_customer_number", "rk_approximate_sum", "asia-southeast1-a-gpt-5", "asia-northeast1.example.com",
    "Invalid type for 'metadata.password': expected a string, but got an integer instead.", "sg.api.example.com:8443",
    "Send the key of an operator as a bearer token.", 'it has a password; set password = "env:NAME" instead',
    "Basic authentication", "basic information+more", "a basic gpt-4.1-mini", "sk%2Dshort", "task%2Dabcdefghijklmnop",
    "api_key = 'file:/run/secrets/upstream'", "Use bearer tokens, or Bearer auth",
]  # fmt: skip
SLOW = ["bearer" + " " * 99_999, "bearer " * 20_000, "sk-" * 40_000, "eyJ" * 40_000, "://" * 40_000, "a:" * 60_000, "://a:" * 30_000,
        "-----BEGIN PRIVATE KEY-----" * 5_000, "secret" * 20_000, "secret = " * 15_000, "-" * 120_000, "password" + "\\" * 99_999,
        "basic " * 20_000, "basic " + "a" * 99_999, "sk%2d" * 20_000, "basic" + "+" * 99_999]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_replaced_wherever_it_stands(key: str):
    """Nothing of it is left, nor of its upper case where that is one."""
    for text in (key, f"my key {key}", f"('{key}')", f"x={key}\nnext line", f'{{"a":"{key}"}}'):
        shown = redact_keys(text)
        pieces = [piece for piece in re.findall(r"\w{9,}", key) if piece not in ("BEGIN", "ENCRYPTED", "services")]

        assert REDACTED in shown
        assert [piece for piece in pieces if piece in shown] == []


@pytest.mark.parametrize(("text", "value"), NAMED)
def test_what_is_called_a_secret_is_replaced(text: str, value: str):
    shown = redact_keys(text)

    assert REDACTED in shown
    assert value not in shown


@pytest.mark.parametrize("text", TEXTS)
def test_other_texts_stay_as_they_are(text: str):
    """A word that only looks like the beginning of a key among them."""
    assert redact_keys(text) == text


@pytest.mark.parametrize("text", SLOW, ids=range(len(SLOW)))
def test_no_text_is_slow(text: str):
    """A hundred thousand characters of beginnings of keys: quadratic work would take minutes."""
    with fail_if_stuck():
        redact_keys(text)


def test_keys_that_the_gateway_knows_are_replaced_whatever_they_look_like():
    """The longest first, as one may begin like another; short ones could be words."""
    finder = KeyFinder()
    for key in ("correct horse battery", "correct horse", "correct"):
        finder.remember(key)
    shown = [
        finder.redact(text)
        for text in ("/correct horse battery/x", "a Correct horse.", "correct", "\ud800correct horse")
    ]

    assert shown == [f"/{REDACTED}/x", f"a {REDACTED}.", "correct", f"\ud800{REDACTED}"]
    assert (finder.has_key("correct horses"), finder.has_key("correct"), KeyFinder().has_key("correct horse")) == (
        True,
        False,
        False,
    )


def test_a_name_that_was_searched_is_searched_again_when_a_key_becomes_known():
    """Names with a key are not remembered, nor are long ones, nor more than so many."""
    finder, known = KeyFinder(), "correct horse"
    names = [known, "sk-abcdefghijklmnop", "m" * (LONGEST_NAME_CHARS + 1), *(f"m{i}" for i in range(MAX_NAMES))]
    shown = [finder.redact_name(name) for name in names]
    remembered = {*finder._names}
    finder.remember(known)

    assert shown == [known, REDACTED, *names[2:]]
    assert remembered.isdisjoint(names[1:3])
    assert len(remembered) <= MAX_NAMES
    assert finder.redact_name(known) == finder.redact_name(known) == REDACTED


def test_a_key_after_an_escaped_space_is_replaced():
    """A path is shown as it was sent."""
    assert redact_keys("/v1/key%20sk-abcdefghijklmnop") == f"/v1/key%20{REDACTED}"


PIECES = ["sk-", "hg_", "eyJ", "Bearer ", "bearer\x1c", "a" * 12, "0" * 40, "age-secret-key-1", "api_key", "secret", '": "', "=", "\\",
          "-----BEGIN ", "PRIVATE KEY-----", "://", "@", ":", "/", " ", "\u017fk-", "\u0301", "\ud800", "%2f", "x", "_", "hooks.slack.com/services/", "ya29.", "%2d", "basic "]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=7).map("".join))
def test_what_the_linear_engine_does_not_find_has_no_key(text: str):
    """It only decides whether a text is searched at all."""
    assert has_key(text) or key_patterns._FORM.sub(REDACTED, text) == text
