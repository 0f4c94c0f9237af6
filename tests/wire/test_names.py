"""Names that only look like fields of the protocol."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given

from proxy.wire.errors import RequestError
from proxy.wire.names import FIELDS, Globs, plain, refuse_lookalikes
from tests.values import PATIENT, TEXTS


def refusal(name: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        refuse_lookalikes(["model", name])
    return caught.value


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_fields_themselves_pass(name: str):
    """They are what they look like."""
    refuse_lookalikes([name])


@pytest.mark.parametrize("name", ["seed", "modal", "metadata2", "x_model", "", " ", "\u200b", "\u4e2d\u6587", "models"])
def test_other_names_pass(name: str):
    """What nobody knows yet is no lookalike."""
    refuse_lookalikes([name])


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Metadata", "metadata"),
        ("MODEL", "model"),
        ("model ", "model"),
        ("\tmodel\n", "model"),
        ("max-tool-calls", "max_tool_calls"),
        ("Max-Tool_Calls", "max_tool_calls"),
        ("m\u043edel", "model"),
        ("\u0455\u0430fety_identifier", "safety_identifier"),
        ("\uff4d\uff4f\uff44\uff45\uff4c", "model"),
        ("mo\u200bdel", "model"),
        ("mod\u00ade\ufeffl", "model"),
        ("mode\u0301l", "model"),
        ("m\u00f6del", "model"),
        ("\U0001d426\U0001d428\U0001d41d\U0001d41e\U0001d425", "model"),
        ("tools\u0000\u00e9"[:6] + "\u00ad", "tools"),
        ("max\u2010tool\u2011calls", "max_tool_calls"),
        ("\u017ftream", "stream"),
        ("\u00a0store", "store"),
        ("mod\u0000el", "model"),
        ("metadata\u007f", "metadata"),
        ("\u0008 user", "user"),
        ("M\u0395TADATA", "metadata"),
        ("\u0422\u041eOLS", "tools"),
        ("I\u039dPUT", "input"),
        ("\u039cODEL", "model"),
        ("maxToolCalls", "max_tool_calls"),
        ("SafetyIdentifier", "safety_identifier"),
        ("_model_", "model"),
        ("\u1d1cser", "user"),
        ("\ua731\u1d1b\u1d0f\u0280\u1d07", "store"),
        ("mod\u212el", "model"),
        ("\u042cackground", "background"),
        ("prompt\u3164", "prompt"),
        ("to\u115fols", "tools"),
    ],
)  # fmt: skip
def test_a_lookalike_is_refused(name: str, field: str):
    """Case, width, another script's letter, unseen characters: somebody could take it for the field."""
    error = refusal(name)

    assert (error.status, error.code) == (400, "lookalike_field")
    assert f"looks like '{field}' and is not" in error.message


def test_the_message_shows_what_cannot_be_seen():
    """A Cyrillic letter is told from a Latin one, and a long name is cut."""
    assert refusal("m\u043edel").message == r"The body has a field 'm\u043edel', which looks like 'model' and is not."
    assert refusal("m\u043edel").param == r"m\u043edel"
    assert len(refusal("model" + " " * 1000).message) <= 125


@PATIENT
@given(name=TEXTS)
def test_no_name_breaks_the_search(name: str):
    """Any text is a field, a lookalike of one, or something else."""
    try:
        refuse_lookalikes([name])
    except RequestError as error:
        told = error.code
    else:
        told = "passed"

    assert told == "passed" or unicodedata.normalize("NFKD", name) not in FIELDS or name not in FIELDS


@pytest.mark.parametrize("dressed", ["Shell", " shell ", "\uff33hell", "sh\u200bell", "SHELL\u0000"])
def test_a_plain_text_is_the_same_in_every_dress(dressed: str):
    """Case, width, space around it and unseen characters make no other word."""
    assert plain(dressed) == "shell"


@pytest.mark.parametrize(
    ("allow", "deny", "allowed", "denied"),
    [
        (["*"], [], ["x", "", None, 7], []),
        (["a*", "b?"], [], ["a", "abc", "bc"], ["b", "A", "", None]),
        ([], [], [], ["a", None]),
        (["*"], ["*-pro"], ["o3", "a" * 500], ["o3-pro", "O3-PRO", "o3\u200b-pro", "o" * 500 + "-Pro", None]),
        (["*"], ["GPT-*"], ["o3"], ["gpt-5", "GPT-5", "Gpt-5"]),
        (["a*"], ["ab"], ["a", "abc"], ["ab", "b"]),
    ],
)
def test_globs_allow_and_deny(allow: list[str], deny: list[str], allowed: list[Any], denied: list[Any]):
    """What is denied is denied in every dress; asked again, the answer is the same."""
    globs = Globs(allow, deny)

    for _ in range(2):
        assert [value for value in allowed if not globs.allows(value)] == []
        assert [value for value in denied if globs.allows(value)] == []
