"""Fields that some upstream reads in place of one of the protocol."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.support.alternatives import ANY, INPUT, MODELS, ROUTING, TOOLS, alternatives_check, short_name
from policies.support.walk import plain_name
from proxy.wire.errors import PolicyViolation
from tests.examples import JSON, NO_DEADLINE, TEXTS


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("functions", "functions"),
        ("Functions", "Functions"),
        ("func-tions", "func-tions"),
        ("\uff46unctions", "\\uff46unctions"),
        ("functions" + "\u200b" * 99, ("functions" + "\\u200b" * 99)[:48]),
        ("extra_body", "extra_body"),
    ],
)
def test_a_field_is_refused_in_any_spelling(name: str, shown: str):
    """The message shows its beginning in ASCII."""
    with pytest.raises(PolicyViolation) as caught:
        alternatives_check(TOOLS)({"model": "m", name: []})

    assert (caught.value.reason, caught.value.param) == ("alternative_field", shown)
    assert len(caught.value.message) <= 120


@pytest.mark.parametrize(
    "query", ["models=x", "Models[]=x", "a=1;mod-els=x", "%6dodels", "a=1&mo%E2%80%8Bdels=x", "b&route=x"]
)
def test_a_field_in_the_query_is_refused(query: str):
    """A server may read it there."""
    with pytest.raises(PolicyViolation) as caught:
        alternatives_check(MODELS)({"model": "m"}, query)

    assert caught.value.reason == "alternative_field"
    alternatives_check(TOOLS)({"model": "m"}, query)


def test_other_fields_pass():
    """Those of other groups, those of the protocol, and a field that is null."""
    check = alternatives_check(MODELS, INPUT)

    check({"model": "m", "input": "Hi", "functions": [], "seed": 1, "models": None, "Messages": None})


def test_every_field_is_in_one_group():
    """In one spelling."""
    fields = [*MODELS, *TOOLS, *INPUT, *ANY, *ROUTING]

    assert len(fields) == len(set(fields))


@NO_DEADLINE
@given(body=st.dictionaries(TEXTS | st.sampled_from(MODELS), JSON, max_size=4))
def test_any_body_passes_or_is_refused(body: dict[str, Any]):
    """No name raises another error."""
    names = {name for name in body if body[name] is not None}
    try:
        alternatives_check(MODELS)(body)
    except PolicyViolation as violation:
        refused = violation.param
    else:
        refused = None

    assert (refused is not None) is not {*map(plain_name, names)}.isdisjoint(map(plain_name, (*MODELS, *ANY)))
    assert refused is None or refused in set(map(short_name, names))
