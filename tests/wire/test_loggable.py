"""What is logged of texts and exceptions from outside."""

import errno
import sqlite3

import pytest
import redis

from proxy.wire.loggable import (
    MAX_ERRORS,
    MAX_FRAMES,
    describe_crash,
    in_ascii,
    name_failure,
    printable,
    short_message,
    summarize_error,
    without_frames,
)

SECRET = "a text of a caller"


def raised(function, *arguments) -> BaseException:
    """Return what a function raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011  any
        function(*arguments)
    return caught.value


def fail(error: BaseException, cause: BaseException | None = None) -> None:
    raise error from cause


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpt-5.6", "gpt-5.6"),
        ("größe 模型", "größe 模型"),
        ("a\x1b[31mb\r\nc", "a\\x1b[31mb\\r\\nc"),
        ("\x9b1m\x7f", "\\x9b1m\\x7f"),
        ("\u202egpt\u2066\u2028", "\\u202egpt\\u2066\\u2028"),
        ("caf\udce9", "caf\\udce9"),
        ("", ""),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, expected: str):
    """Control characters, marks that reverse the direction of text, and bytes that are not UTF-8."""
    assert printable(text) == expected
    assert printable(text).isprintable()


@pytest.mark.parametrize("text", ["x" * 1000, "\x00" * 1000, "\udce9" * 1000])
def test_a_text_is_bounded(text: str):
    """Escaping does not make it longer than the limit."""
    assert len(printable(text)) <= 128
    assert len(printable(text, 20)) == 20


def test_characters_that_look_alike_differ_in_ascii():
    """A name in Cyrillic letters is not shown as the Latin name that it resembles; the text is cut before."""
    assert in_ascii("m\u043edel", 10) == "m\\u043edel"
    assert in_ascii("\x1b\udce9") == "\x1b\\udce9"
    assert in_ascii("\u043e" * 9, 2) == "\\u043e\\u043e"
    assert len(in_ascii("x" * 1000)) == 128


def test_a_message_of_our_own_is_cut_and_printable():
    """A store's message may end in what a server said."""
    assert short_message(ValueError("the store failed:\n" + "x" * 1000)) == "the store failed:\\n" + "x" * 181


def test_an_error_is_summarized_by_its_type_and_place():
    """Its message is left out."""
    summary = summarize_error(raised(fail, ValueError(SECRET)))

    assert summary.startswith("ValueError at tests/wire/test_loggable.py:")
    assert summary.endswith(" in fail")


def test_the_name_of_a_system_error_is_kept():
    """It says what the operator has to mend, and is no text of anyone."""
    assert summarize_error(OSError(errno.ECONNREFUSED, SECRET)) == "ConnectionRefusedError ECONNREFUSED"
    assert summarize_error(OSError(SECRET)) == "OSError"
    assert summarize_error(OSError(123456, SECRET)) == "OSError"


def test_a_crash_is_described_by_the_frames_of_all_its_causes():
    """Neither messages nor values are in it."""
    context = raised(fail, KeyError(SECRET))
    group = ExceptionGroup(SECRET, [TypeError(SECRET), raised(fail, ValueError(SECRET), context)])
    lines = describe_crash(raised(fail, RuntimeError(SECRET), group)).splitlines()

    assert [line.removeprefix("caused by ") for line in lines if not line.startswith("  ")] == [
        "RuntimeError", "ExceptionGroup", "TypeError", "ValueError", "KeyError",
    ]  # fmt: skip
    assert all(line.startswith(("  ", "caused by ")) for line in lines[1:])
    assert "in fail" in lines[2] or "in fail" in lines[1]
    assert SECRET not in "".join(lines)


def test_a_cycle_of_causes_ends():
    """An error can be its own cause by way of others."""
    first, second = ValueError(), TypeError()
    first.__cause__, second.__cause__ = second, first

    assert describe_crash(first).splitlines() == ["ValueError", "caused by TypeError"]


def test_a_crash_is_described_within_limits():
    """Recursion has a thousand frames, and a loop of retries as many causes."""

    def recurse() -> None:
        recurse()

    error = raised(recurse)
    for _ in range(100):
        error = raised(fail, ValueError(), error)

    assert len(describe_crash(raised(recurse)).splitlines()) == 1 + MAX_FRAMES
    assert len([line for line in describe_crash(error).splitlines() if "ValueError" in line]) == MAX_ERRORS


def test_a_failure_of_a_library_is_named_by_its_codes():
    """Its text may quote anything."""
    connection = redis.exceptions.ConnectionError("Error 111 connecting to 10.0.0.1 with hunter2")
    connection.__context__ = ConnectionRefusedError(errno.ECONNREFUSED, "hunter2")
    full = sqlite3.OperationalError("hunter2")
    full.sqlite_errorname = "SQLITE_FULL"  # as the library sets it
    named = {
        name_failure(error)
        for error in (connection, full, ValueError("hunter2"), redis.exceptions.ResponseError("WRONGTYPE hunter2"))
    }

    assert named == {
        "ConnectionError (ConnectionRefusedError ECONNREFUSED)", "OperationalError SQLITE_FULL", "ValueError",
        "ResponseError WRONGTYPE",
    }  # fmt: skip


def test_the_places_of_an_error_without_frames_are_still_named():
    """Those of both tracebacks, if it is raised again."""
    error = raised(fail, ValueError(SECRET))
    before = summarize_error(error), describe_crash(error)
    dropped = without_frames(error)
    first = summarize_error(dropped), describe_crash(dropped), dropped.__traceback__
    again = describe_crash(raised(fail, dropped))

    assert before[0].endswith(" in fail")
    assert first == (*before, None)
    assert again.startswith(before[1])
    assert again.count(" in fail") == 2
