"""The work that a rendering spends, measured by what remains of its budget."""

import pytest

from backends.local.model.template_metering import CALL_COST, ITERATION_COST, add_metering
from backends.local.model.template_sandbox import WORK_BUDGET, BoundedSandbox


def spent(source, **variables):
    sandbox = BoundedSandbox()
    template = sandbox.from_string(add_metering(sandbox.parse(source), sandbox))
    sandbox.work.remaining = WORK_BUDGET
    template.render(variables)
    return WORK_BUDGET - sandbox.work.remaining


@pytest.mark.parametrize(
    ("source", "least"),
    [
        ("{% for i in range(100) %}{% endfor %}", 100 * ITERATION_COST),
        ("{% for i in range(100) if false %}{% endfor %}", 100 * ITERATION_COST),
        ("{% for i in range(100) %}" + "x" * 500 + "{% endfor %}", 100 * 500),
        ("{% macro m() %}{% endmacro %}{{ m() }}{{ m() }}", 2 * CALL_COST),
        ("{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{% endcall %}", 2 * CALL_COST),
        ("{% block a %}{% endblock %}{{ self.a() }}", 2 * CALL_COST),
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
def test_everything_that_takes_time_spends_work(source, least):
    """In proportion to its size."""
    assert least <= spent(source, text="a" * 1000, other="b", items=["a" * 1000])


@pytest.mark.parametrize(
    "source",
    ["{{ 'a' }}text", "{% if role == 'user' %}{% endif %}", "{% if role in ['a', 'b'] %}{% endif %}", "{{ x.y }}"],
)
def test_constants_are_almost_free(source):
    """The template's own text, and comparisons with it."""
    assert spent(source, role="user", x={"y": 1}) <= 100
