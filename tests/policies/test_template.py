"""The template that other policies are copied from: it works as it is."""

import inspect

import pytest

from policies import _template
from policies._template import Template
from proxy.wire.errors import PolicyViolation
from tests.examples import apply_policy, make_call


async def test_the_template_refuses_the_model_it_names():
    """A copy starts from a check that works."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(Template(forbidden_model="m"), make_call())

    assert (caught.value.reason, caught.value.param) == ("forbidden", "model")
    assert caught.value.message == "model is m; it is not allowed."


@pytest.mark.parametrize("policy", [Template(), Template(forbidden_model="gpt-0")])
async def test_the_template_passes_every_other_model(policy: Template):
    """By default it forbids none."""
    call = make_call()

    assert await apply_policy(policy, call) is call


def test_the_template_has_the_headings_of_a_policy():
    """`headgate explain` prints them."""
    text = inspect.getdoc(_template) or ""

    assert [heading for heading in ("Request:", "Response:", "Source:") if heading not in text] == []
