"""What a transcript keeps of deltas takes little memory, and is what was received when it is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.event import MessageRun, Run
from proxy.wire.packed_run import JOINED_BYTES, LEAST_RUNS, NOTHING, join_runs
from tests.bench.answers import DIALECTS, build_frames

PIECES = st.sampled_from([b"a", b"bc", b'"', b",", b":", b"\n\n", b"\0", b"\1", b'{"type":"x","n":', b',"delta":"'])
FRAMES = st.lists(st.lists(PIECES, min_size=1, max_size=12).map(b"".join), min_size=1, max_size=LEAST_RUNS + 2)
WORDS = ["The", " train", " to", " Bern", ",", " leaves", " at", " 9:00", "."]


def frame(number: int, text: str) -> bytes:
    return (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d,'
        b'"item_id":"msg_0123456789","output_index":0,"content_index":0,"delta":"%b","obfuscation":"%b"}\n\n'
    ) % (number, text.encode(), b"xyzuvwrst"[: number % 9])


@given(st.lists(FRAMES, min_size=1, max_size=3))
def test_whatever_is_joined_is_what_was_received(batches: list[list[bytes]]):
    """Also with what earlier frames had in common."""
    common = NOTHING
    for frames in batches:
        runs, common = join_runs(frames, Run, common)

        assert b"".join(run.sse for run in runs) == b"".join(run.raw for run in runs) == b"".join(frames)
        assert sum(run.received_bytes for run in runs) == len(b"".join(frames))


def test_what_frames_have_in_common_is_kept_once():
    """A number, a text and a random text are different in each; another item has another id."""
    common, kept, whole = NOTHING, 0, b""
    for start in range(0, 72, 9):
        frames = [frame(number, text) for number, text in enumerate(WORDS, start)]
        frames = [each.replace(b"msg_0", b"msg_1") for each in frames] if start >= 36 else frames
        (run,), common = join_runs(frames, Run, common)
        kept += len(run._packed)
        whole += b"".join(frames)

    assert kept * 3 < len(whole)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_deltas_of_every_dialect_are_kept_shorter(dialect: str):
    """Whatever comes first in them."""
    frames = [each for each in build_frames(8, dialect) if b".delta" in each]
    (run,), _ = join_runs(frames, Run, NOTHING)

    assert [*run.payloads()] == [payload for each in frames for payload in Run(each).payloads()]
    assert 2 * len(run._packed) < len(run.sse)


@pytest.mark.parametrize("text", [b"\0", b"\1", b"\0\1"])
@pytest.mark.parametrize("place", [0, 60, 100, -20])
def test_bytes_of_marks_are_kept_as_they_are(text: bytes, place: int):
    """In what frames have in common, or in one of them only."""
    frames = [frame(number, "a") for number in range(LEAST_RUNS)]
    marked = [each[:place] + text + each[place:] for each in frames]
    for received in (marked, [*frames[:-1], marked[-1]]):
        (run,), _ = join_runs(received, Run, join_runs(frames, Run, NOTHING)[1])

        assert run.raw == b"".join(received)


def test_messages_are_joined_as_lines():
    """They have no frames."""
    (run,), common = join_runs([b'{"a":1}', b'{"a":2}'], MessageRun, NOTHING)

    assert (type(run), run.raw, common) == (MessageRun, b'{"a":1}\n{"a":2}', NOTHING)


def test_long_runs_are_kept_as_they_are():
    """Joining them would copy much, and save nothing."""
    frames = [b"x" * JOINED_BYTES, b"y"]
    runs, _ = join_runs(frames, Run, NOTHING)

    assert [run.raw for run in runs] == frames
