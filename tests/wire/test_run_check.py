"""Which chunks of a stream pass as they are."""

import re
from dataclasses import replace

import pytest

from proxy.wire.candidates import candidate_patterns
from proxy.wire.event import FOLLOWED
from proxy.wire.run_check import MAX_STARTS, RunCheck
from tests.bench.answers import DIALECTS, build_frames
from tests.wire.test_candidates import FOUND, NOT_FOUND

PATTERNS = candidate_patterns(FOLLOWED)
SECRET = ((ord("k"), re.compile(rb"sk-secret")),)
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d,"delta":"%b"}\n\n'
WARM_UP = [DELTA % (number, b"a") for number in range(3)]


def frame(data: bytes) -> bytes:
    return b"data: {%b}\n\n" % data


def checked(*before: bytes, secrets=SECRET) -> RunCheck:
    """Return a check that these chunks have passed."""
    check = RunCheck(PATTERNS, secrets)
    assert all(check.passes(chunk) for chunk in before)
    return check


@pytest.mark.parametrize("before", [[], WARM_UP], ids=["first", "later"])
@pytest.mark.parametrize("data", FOUND.values(), ids=FOUND)
def test_what_may_be_followed_does_not_pass(data: bytes, before: list[bytes]):
    """Alone, behind a delta, before one, or in one: however many deltas have passed."""
    for chunk in (frame(data), WARM_UP[0] + frame(data), frame(data) + WARM_UP[0], DELTA % (9, data)):
        assert not checked(*before).passes(chunk)


@pytest.mark.parametrize("data", NOT_FOUND.values(), ids=NOT_FOUND)
def test_what_is_not_followed_passes(data: bytes):
    """It is neither split nor parsed."""
    assert checked(*WARM_UP).passes(frame(data) + WARM_UP[0])


def test_a_comment_passes_before_and_between_deltas():
    """It has no type, so that nothing is known of how later chunks begin."""
    comment = b": keep-alive\n\n"
    check = checked(comment, *WARM_UP, comment, WARM_UP[0])

    assert not check.passes(frame(b'"type":"response.completed"'))


@pytest.mark.parametrize("text", [b"sk-secret", b"the sk-secrets", b"kkkk sk-secret"])
def test_a_secret_does_not_pass(text: bytes):
    """It is removed then."""
    check = checked(*WARM_UP)

    assert not check.passes(DELTA % (3, text))
    assert check.passes(DELTA % (4, b"no risk-secre"))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"", b"\n\n:"])
def test_a_part_of_a_frame_does_not_pass(end: bytes):
    """It is a whole frame with what comes next."""
    assert not checked(*WARM_UP).passes(WARM_UP[0].rstrip(b"\n") + end)


@pytest.mark.parametrize("place", range(len(WARM_UP[0]) - 1))
def test_a_secret_passes_at_no_place(place: int):
    """Not in what deltas have in common, not behind it, and not across its end."""
    chunk = WARM_UP[0][:place] + b"sk-secret" + WARM_UP[0][place:]
    check = checked(*WARM_UP)

    assert [check.passes(chunk), check.passes(chunk)] == [False, False]


def test_a_secret_with_a_comma_is_found_across_the_end_of_a_common_beginning():
    """Nothing is learnt then."""
    check = RunCheck(PATTERNS, ((ord("Q"), re.compile(rb'elta","Q')),))
    for number in range(3):
        assert check.passes(DELTA % (number, b"a"))

    assert not check.passes(WARM_UP[0].replace(b',"sequence', b',"Q'))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_deltas_of_every_dialect_pass(dialect: str):
    """And followed events do not, whatever came before."""
    check, frames = RunCheck(PATTERNS, SECRET), build_frames(3 * MAX_STARTS, dialect)
    passed = [check.passes(chunk) for chunk in frames]
    are_deltas = [b".delta" in chunk or b"part." in chunk or b"text.done" in chunk for chunk in frames]

    assert passed == are_deltas


@pytest.mark.parametrize("dialect", ["compact", "json.dumps", "CRLF"])
def test_what_deltas_have_in_common_is_searched_once(dialect: str):
    """Which is most of a short one."""
    searched: list[int] = []

    class Pattern:
        pattern = b"x"

        def search(self, data: bytes) -> None:
            searched.append(len(data))

    check: RunCheck = RunCheck(replace(PATTERNS, each=()), ((ord("d"), Pattern()),))  # type: ignore[arg-type]
    deltas = [each for each in build_frames(3, dialect) if b".delta" in each]
    for chunk in deltas:
        check.passes(chunk)

    assert searched[0] == len(deltas[0])
    assert max(searched[1:]) < len(deltas[0]) - 60
