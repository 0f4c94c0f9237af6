"""The cost of hostile templates: they end soon, with an error, and in little memory."""

import tracemalloc

import pytest
from jinja2 import TemplateError

from backends.local.model.chat_template import EXPRESSION_ERRORS
from backends.local.model.template_metering import add_metering
from backends.local.model.template_sandbox import WORK_BUDGET, BoundedSandbox
from tests.timeouts import fail_if_stuck

# Far more than they take; without a limit they would run for hours, or until memory is exhausted.
LARGE_BYTES = 500_000_000
FORTY = "{% set ns = namespace(x=1, y=1) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}"
BIG = "{% set x = 'a' * 1000000 %}"
HOSTILE = {
    "a range": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loops that try": "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "loops that call themselves": "{% for a in range(9999) recursive %}{% if loop.depth < 5 %}"
    "{{ loop(range(9999)) }}{% endif %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "callers": "{% macro g() %}{{ caller() }}{% endmacro %}{% macro f(n) %}{% if n %}{% call g() %}{{ f(n-1) }}"
    "{{ f(n-1) }}{% endcall %}{% endif %}{% endmacro %}{{ f(40) }}",
    "blocks": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "text by number": "{{ 'x' * 10**9 }}",
    "number by text": "{{ 10**9 * 'x' }}",
    "lists by number": "{{ ([1] * 10**9) | length }}",
    "powers": "{{ 10 ** (10 ** 9) }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "format": "{{ '%1000000000d' % 1 }}",
    "format by value": "{{ '%*d' % (10**9, 1) }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "format in format": "{{ '{:{}}'.format(1, 10**9) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format of much": BIG + "{{ ('%s' * 1000) % ((x,) * 1000) }}",
    "justified": "{{ 'x'.ljust(10**9) }}",
    "zeros": "{{ 'x'.zfill(10**9) }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "centre": "{{ 'x' | center(10**9) }}",
    "doubled by +": "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled by ~": "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled list": "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "referenced twice": FORTY + "{% endfor %}{{ ns.x }}",
    "referenced twice, as JSON": FORTY + "{% endfor %}{{ [ns.x] | string }}",
    "referenced twice, compared": FORTY + "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "referenced twice, tested": FORTY + "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x is eq(ns.y) }}",
    "referenced twice, searched": FORTY + "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x in [ns.y] }}",
    "referenced twice by name": "{% set ns = namespace(x=1) %}{% for i in range(64) %}"
    "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "referenced twice, hashed": "{% set ns = namespace(x=1) %}{% for i in range(64) %}"
    "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {}[ns.x] }}",
    "pairs as keys": "{% set t = (1, 2) %}{{ {t: 1} }}",
    "pairs into dict()": "{{ dict([(1, 2)]) }}",
    "replaced": BIG + "{{ x | replace('a', x) }}",
    "replaced by method": BIG + "{{ x.replace('a', x) }}",
    "joined": BIG + "{{ ([x] * 100000) | join }}",
    "joined by method": BIG + "{{ ''.join([x] * 100000) }}",
    "joined with much": BIG + "{{ x.join(['a'] * 100000) }}",
    "indented": "{{ 'a' | indent(10**9, true) }}",
    "rounded": "{{ 1 | round(10**9, 'ceil') }}",
    "read as a number": "{{ ('1' * 100000) | int(0, 2) }}",
    "cut again and again": BIG + "{% for i in range(100000) %}{% set y = x[1:] %}{% endfor %}",
    "compared again and again": BIG + "{% set y = x + 'a' %}{% for i in range(100000) %}{{ x == y }}{% endfor %}",
    "searched again and again": BIG + "{% for i in range(100000) %}{{ 'b' in x }}{% endfor %}",
    "called again and again": BIG + "{% for i in range(100000) %}{{ x.find('b') }}{% endfor %}",
    "mapped again and again": "{% for i in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "sorted again and again": "{% for i in range(99999) %}{% set y = range(99999) | sort %}{% endfor %}",
    "titles": "{% for i in range(99999) %}{% set y = ('a ' * 9999) | title %}{% endfor %}",
    "counted again and again": "{% set x = [1] * 99999 %}{% for i in range(99999) %}{{ x.count(2) }}{% endfor %}",
    "its own words": "{% for i in range(100000) %}" + "x" * 10000 + "{% endfor %}",
    "sums of many": BIG + "{{ (" + "+".join(["x"] * 200) + ") | length }}",
}  # fmt: skip


def render(source, work=WORK_BUDGET, **variables):
    sandbox = BoundedSandbox()
    template = sandbox.from_string(add_metering(sandbox.parse(source), sandbox))
    sandbox.work.remaining = work
    return template.render(variables)


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_stopped(source):
    """By counted work, not by time: here after a tenth of the budget."""
    with pytest.raises((TemplateError, *EXPRESSION_ERRORS)):
        render(source, WORK_BUDGET // 10)


@pytest.mark.parametrize("name", ["macros", "loops that call themselves", "mapped again and again", "titles"])
def test_the_slowest_templates_are_stopped_with_the_full_budget(name):
    """Those that take the most time for their work, some seconds."""
    with fail_if_stuck(), pytest.raises(TemplateError):
        render(HOSTILE[name])


@pytest.mark.parametrize("name", ["doubled by +", "doubled list", "joined", "sums of many"])
def test_a_template_cannot_exhaust_memory(name):
    """Work is spent before the result is made."""
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            render(HOSTILE[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < LARGE_BYTES


def test_each_rendering_has_its_own_budget():
    """The next one begins with a full budget."""
    sandbox = BoundedSandbox()
    template = sandbox.from_string(add_metering(sandbox.parse("{{ 'x' * n }}"), sandbox))
    for _ in range(3):
        sandbox.work.remaining = WORK_BUDGET

        assert len(template.render({"n": 40_000_000})) == 40_000_000


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 'a' + 'b' + c }}", "abc"),
        ("{{ 1 + 2 + 3 }}", "6"),
        ("{{ [1] + [2] }}", "[1, 2]"),
        ("{{ 1 ~ 'a' ~ none }}", "1aNone"),
        ("{{ 'ab' * 2 }}{{ 2 * 3 }}{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 7 % 4 }}", "abab610240.53"),
        ("{{ '%s-%05.1f' % ('a', 2) }}{{ '%s' | format(1) }}{{ '{}-{a}'.format(1, a=2) }}", "a-002.011-2"),
        ("{{ 'aXbX'.replace('X', '--') }}{{ 'aXbX' | replace('X', '-', 1) }}", "a--b--a-bX"),
        ("{{ ['a', 1] | join('+') }}{{ items | join(',', attribute='n') }}{{ '-'.join(['a', 'b']) }}", "a+11,2a-b"),
        ("{{ 'a\nb' | indent(2) }}{{ '7' | int }}{{ 'x' | int(3) }}{{ 2.345 | round(2) }}", "a\n  b732.35"),
        ("{{ 'abc'[1:] }}{{ items[:1] }}{{ 'abc'[::-1] }}", "bc[{'n': 1}]cba"),
        ("{{ 1 == 1.0 }}{{ c == 'c' }}{{ c in 'abc' }}{{ 'n' in items[0] }}{{ 1 < c | length < 3 }}", "TrueTrueTrueTrueFalse"),
        ("{% for i in items if i.n > 1 %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}", "1/1True"),
        ("{% for i in [] %}{% else %}none{% endfor %}", "none"),
        ("{% set a, b = items[0], 'x' %}{{ a.n }}{{ b }}{{ (1, 'a') }}{{ {'a': (1, 2)} }}", "1x(1, 'a'){'a': (1, 2)}"),
        ("{% macro m(x) %}[{{ x }}{{ caller() if caller }}]{% endmacro %}{{ m(1) }}{% call m(2) %}!{% endcall %}", "[1][2!]"),
        ("{{ items | map(attribute='n') | list }}{{ items | selectattr('n', 'equalto', 2) | list | length }}", "[1, 2]1"),
        ("{{ [3, 1] | sort }}{{ {'b': 1} | items | list }}{{ {'b': 1}.items() | list }}{{ 'a b'.split() }}", "[1, 3][('b', 1)][('b', 1)]['a', 'b']"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns }}{{ dict({'x': 1}, y=2) }}", "2<Namespace>{'x': 1, 'y': 2}"),
        ("{{ missing }}{{ missing is defined }}{{ missing | default('d') }}", "Falsed"),
        ("{{ ' a ' | trim }}{{ 'a' | upper }}{{ [1, 2] | first }}{{ [1, 2] | last }}{{ 'abc' | length }}", "aA123"),
        ("{{ '%s' % items }}{{ items | string }}", "[{'n': 1}, {'n': 2}][{'n': 1}, {'n': 2}]"),
        ("{% set x %}a{{ c }}{% endset %}{{ x }}{% filter upper %}b{{ c }}{% endfilter %}", "acBC"),
    ],
)  # fmt: skip
def test_metering_does_not_change_the_output(source, expected):
    """Of any construct that templates use."""
    assert expected == render(source, c="c", items=[{"n": 1}, {"n": 2}])


@pytest.mark.parametrize(
    "name", ["batch", "slice", "center", "pprint", "random", "sum", "urlize", "wordwrap", "xmlattr"]
)
def test_unneeded_filters_are_not_available(name):
    """A template with one is refused when it is compiled."""
    with pytest.raises(TemplateError, match=f"No filter named '{name}'"):
        render("{{ 'a' | " + name + " }}")


@pytest.mark.parametrize("name", ["spend ", "print ", "add "])
def test_the_names_of_metering_filters_cannot_be_written(name):
    """So no template can call or replace them."""
    with pytest.raises(TemplateError):
        render("{{ 'a' | " + name + " }}")
