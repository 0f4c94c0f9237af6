"""Grammars that callers write for custom tools."""

from contextlib import suppress

import pytest

from backends.local.grammar.custom_tools import MAX_CHARS, lark_grammar, regex_grammar
from proxy.wire.errors import RequestError
from tests.timeouts import fail_if_stuck

PATCH = r"""
start: begin hunk+ end   // a patch
begin: "*** Begin <Patch>" LF
hunk: "@@ " /(.+)/ LF
end: "*** End %json @tool" LF?
%import common.LF
%ignore /[ \t]+/
"""


def test_a_valid_grammar_is_returned_unchanged():
    assert lark_grammar(PATCH) == PATCH


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("start: b", "unknown name"),
        ("a: /b/", "no start rule found"),
        ('start: %json {"type": "object"}', "'%json' is not supported"),
        ('%llguidance {"no_forcing": true}\nstart: "a"', "'%llguidance' is not supported"),
        ('start: <|im_end|> "a"', r"'<|im_end|>' is not supported"),
        ("start: <[3]>", "is not supported"),
        ('start: @other "a"', "'@other' is not supported"),
        ('start: a\na[stop="x"]: /.*/', "'stop' is not supported"),
        ("start: a\na[lazy]: /.*/", "'lazy' is not supported"),
        ("start: A\nA: /a/ & /b/ & /c/ & /d/ & /e/ & /f/ & /g/ & /h/", "more than 6 of & and ~"),
        ('start: "' + "a" * MAX_CHARS + '"', f"at most {MAX_CHARS} are supported"),
    ],
)
def test_an_invalid_grammar_is_refused_with_the_reason(definition, message):
    with pytest.raises(RequestError) as refused:
        lark_grammar(definition, "tools[0].format.definition")

    assert message in refused.value.message
    assert (refused.value.status, refused.value.code) == (400, "invalid_grammar")
    assert refused.value.param == "tools[0].format.definition"


def test_repetitions_do_not_count_as_intersections():
    definition = 'start: "a"~3 ' + '"b"~1..2 ' * 9

    assert lark_grammar(definition) == definition


def test_a_regex_is_converted_to_a_grammar():
    assert regex_grammar("[a-z]+/\\d{2}") == "start: /[a-z]+\\/\\d{2}/"


@pytest.mark.parametrize(
    ("definition", "message"), [("(?=a)b", "look-around"), ("a(", "unclosed group"), ("a" * 30_000, "at most")]
)
def test_an_invalid_regex_is_refused_with_the_reason(definition, message):
    with pytest.raises(RequestError) as refused:
        regex_grammar(definition)

    assert message in refused.value.message


@pytest.mark.parametrize(
    "definition",
    [
        "start: A\n" + "\n".join(f"A{n}: A{n + 1} A{n + 1}" for n in range(40)) + '\nA40: "x"\nA: A0',
        "start: " + "(" * 9000 + '"x"' + ")" * 9000,
        "start: /" + "(" * 9000 + "x" + ")" * 9000 + "/",
        'start: a{1000000}\na: "x" a | "y"',
        "start: A\nA: " + " & ".join(f"/(a|b)*a(a|b){{{n}}}c/" for n in range(20, 26)),
        "start: /((a{1,1000}){1,1000}){1,1000}/",
        'start: "' + '"\nb: "' * 3000 + '"',
    ],
)
def test_no_grammar_takes_long_to_check(definition):
    with fail_if_stuck(), suppress(RequestError):
        lark_grammar(definition)


@pytest.mark.parametrize(
    "definition",
    [
        "start: a\na: a",
        'start: "a"~1000000',
        "start: r0\n" + "\n".join(f"r{n}: r{n + 1} r{n + 1}" for n in range(30)) + '\nr30: "a"',
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(definition):
    with pytest.raises(RequestError) as refused:
        lark_grammar(definition)

    assert (refused.value.status, refused.value.code) == (400, "invalid_grammar")


def test_a_regex_that_nothing_matches_is_refused():
    with pytest.raises(RequestError, match="nothing can match it"):
        regex_grammar("[^\\s\\S]")
