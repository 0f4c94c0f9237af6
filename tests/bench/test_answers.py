"""The dialects of the fake upstream: different bytes, the same events."""

import orjson
import pytest

from tests.bench.answers import BURST_EVENTS, DIALECTS, build_burst_answer, build_frames

FRAMES = {dialect: build_frames(200, dialect) for dialect in DIALECTS}


def parse(frame):
    """The type in the event line, if there is one, and the JSON object in the data line."""
    lines = dict(line.split(": ", 1) for line in frame.decode().splitlines() if line)
    return lines.get("event"), lines["data"] if lines["data"] == "[DONE]" else orjson.loads(lines["data"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_has_the_same_events(dialect):
    events = [parse(frame)[1] for frame in FRAMES[dialect]]

    assert events == [parse(frame)[1] for frame in FRAMES["compact"]]
    assert len(events) == BURST_EVENTS
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize("dialect", ["compact", "json.dumps", "CRLF"])
def test_event_lines_repeat_the_type_of_the_data(dialect):
    for frame in FRAMES[dialect][:-1]:
        name, data = parse(frame)

        assert name == data["type"]


def test_compact_frames_begin_with_the_type_and_have_no_spaces():
    for frame in FRAMES["compact"][:-1]:
        name, _ = parse(frame)

        assert frame.startswith(f'event: {name}\ndata: {{"type":"{name}","'.encode())
        assert frame.endswith(b"}\n\n")


def test_json_dumps_frames_have_a_space_after_colons_and_commas():
    for frame in FRAMES["json.dumps"][:-1]:
        name, _ = parse(frame)

        assert frame.startswith(f'event: {name}\ndata: {{"type": "{name}", "'.encode())


def test_type_last_frames_end_with_the_type_and_have_no_event_line():
    for frame in FRAMES["type last"][:-1]:
        name, data = parse(frame)

        assert name is None
        assert frame.endswith(f',"type":"{data["type"]}"}}\n\n'.encode())


def test_crlf_frames_are_compact_frames_with_other_line_ends():
    assert [frame.replace(b"\r\n", b"\n") for frame in FRAMES["CRLF"]] == FRAMES["compact"]
    assert all(frame.count(b"\r\n") == frame.count(b"\n") for frame in FRAMES["CRLF"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_burst_is_one_chunk(dialect):
    _, _, body = build_burst_answer(dialect).partition(b"\r\n\r\n")
    events = b"".join(FRAMES[dialect])

    assert body == b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events)
