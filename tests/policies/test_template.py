"""The policy that others are copied from: it works as it stands."""

import inspect

import pytest

from policies import _template
from policies._template import Template
from proxy.wire.errors import PolicyViolation
from tests.shapes import call_with, judged_by


async def test_the_template_refuses_the_model_it_names():
    """What a copy has to change is there and works."""
    with pytest.raises(PolicyViolation) as caught:
        await judged_by(Template(forbidden_model="m"), call_with())

    assert (caught.value.reason, caught.value.param) == ("forbidden", "model")
    assert caught.value.message == "model is m; it is not allowed."


async def test_the_template_lets_all_others_pass():
    """Unless it is told otherwise, it forbids nothing."""
    call = call_with()

    assert await judged_by(Template(forbidden_model="gpt-0"), call) is call
    assert await judged_by(Template(), call) is call


def test_the_template_shows_the_headings_of_a_policy():
    """`headgate explain` prints them."""
    text = inspect.getdoc(_template) or ""

    assert [heading for heading in ("Request:", "Response:", "Source:") if heading not in text] == []
