"""Names that resemble a field of the protocol, and normalized texts."""

import unicodedata

import pytest
from hypothesis import given

from proxy.wire.errors import RequestError
from proxy.wire.fields import FIELDS, OTHER_FIELDS, fold_name, normalize, refuse_lookalikes, resembled_field
from tests.examples import NO_DEADLINE, TEXTS


def refusal(name: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        refuse_lookalikes(["model", name])
    return caught.value


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_fields_themselves_pass(name: str):
    """Only a name that is not a field can resemble one."""
    refuse_lookalikes([name])


def test_no_other_field_that_is_known_resembles_one():
    """They pass without being compared."""
    assert [name for name in OTHER_FIELDS if resembled_field(name) is not None] == []


@pytest.mark.parametrize("name", ["seed", "modal", "metadata2", "x_model", "", " ", "\u200b", "\u4e2d\u6587", "models"])
def test_unknown_names_pass(name: str):
    """A field that the protocol adds later does not resemble a known one."""
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
    """Case, width, a letter of another script, invisible characters: a lenient backend may accept it as the field."""
    error = refusal(name)

    assert (error.status, error.code) == (400, "lookalike_field")
    assert f"which resembles '{field}'; only '{field}' itself is allowed" in error.message


def test_the_message_shows_invisible_differences():
    """A Cyrillic letter is escaped, and a long name is cut."""
    error = refusal("m\u043edel")

    assert error.param == r"m\u043edel"
    assert error.message == (
        r"The body has a field 'm\u043edel', which resembles 'model'; only 'model' itself is allowed."
    )
    assert len(refusal("model" + " " * 1000).message) <= 145


@NO_DEADLINE
@given(name=TEXTS)
def test_any_name_is_a_field_or_a_lookalike_or_unknown(name: str):
    """No text raises another error, and a refused name is never a field itself."""
    try:
        refuse_lookalikes([name])
    except RequestError as error:
        outcome = error.code
    else:
        outcome = "passed"

    assert outcome == "passed" or unicodedata.normalize("NFKD", name) not in FIELDS or name not in FIELDS
    assert outcome in ("passed", "lookalike_field")


@pytest.mark.parametrize("text", ["Shell", " shell ", "\uff33hell", "sh\u200bell", "SHELL\u0000"])
def test_a_normalized_text_has_no_case_width_outer_space_or_invisible_characters(text: str):
    """Deny lists match this form."""
    assert normalize(text) == "shell"


@pytest.mark.parametrize(
    ("name", "folded"),
    [("X-Cost", "x_cost"), ("\u0441ost", "cost"), ("caf\u00e9", "cafe"), ("\u30ac", "\u30ab"), (" a\u0000b ", "ab")],
)
def test_a_folded_name_has_no_accents_and_only_latin_letters_where_they_look_alike(name: str, folded: str):
    """The form in which names are compared with those of the protocol."""
    assert fold_name(name) == folded
