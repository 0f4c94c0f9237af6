"""Where a rendering spends its work: measured by what is left."""

import pytest

from backends.local.model.pace import CALL, TURN, paced
from backends.local.model.sandbox import WORK, BoundedSandbox


def spent(source, **variables):
    sandbox = BoundedSandbox()
    template = sandbox.from_string(paced(sandbox.parse(source), sandbox))
    sandbox.work.left = WORK
    template.render(variables)
    return WORK - sandbox.work.left


@pytest.mark.parametrize(
    ("source", "least"),
    [
        ("{% for i in range(100) %}{% endfor %}", 100 * TURN),
        ("{% for i in range(100) if false %}{% endfor %}", 100 * TURN),
        ("{% for i in range(100) %}" + "x" * 500 + "{% endfor %}", 100 * 500),
        ("{% macro m() %}{% endmacro %}{{ m() }}{{ m() }}", 2 * CALL),
        ("{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{% endcall %}", 2 * CALL),
        ("{% block a %}{% endblock %}{{ self.a() }}", 2 * CALL),
        ("{{ text }}", 1000),
        ("{% set x = text + 'a' %}", 1000),
        ("{% set x = text ~ 1 %}", 1000),
        ("{% set x = text[1:] %}", 999),
        ("{% if text == other %}{% endif %}", 1000),
        ("{% if 'b' in text %}{% endif %}", 1000),
        ("{% if [text] in items %}{% endif %}", 2000),
        ("{% set x = text | upper %}", 2000),
        ("{% set x = text.upper() %}", 2000),
        ("{% set x = [items, items] | string %}", 2000),
    ],
)
def test_all_that_takes_time_is_paid_for(source, least):
    """By its size, before the next thing is done."""
    assert least <= spent(source, text="a" * 1000, other="b", items=["a" * 1000])


@pytest.mark.parametrize(
    "source",
    ["{{ 'a' }}text", "{% if role == 'user' %}{% endif %}", "{% if role in ['a', 'b'] %}{% endif %}", "{{ x.y }}"],
)
def test_what_takes_no_time_costs_next_to_nothing(source):
    """The template's own words, and comparing with them."""
    assert spent(source, role="user", x={"y": 1}) <= 100
