"""Bytes, cut anywhere, become frames that keep their own bytes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.event import DONE, TRACKED, Event, data_of
from proxy.wire.sse import BOM, SSEParser
from tests.values import PATIENT, TEXTS

DATA = Path(__file__).parent.parent / "data"
RECORDED = {path.stem: path.read_bytes() for path in sorted(DATA.glob("*.sse"))}
CANONICAL = RECORDED["canonical"]
CREATED = b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
COMPLETED = b'event: response.completed\ndata: {"type":"response.completed","sequence_number":2}\n\n'
SENTINEL = b"data: [DONE]\n\n"
SHORT = CREATED + DELTA + DELTA + COMPLETED + SENTINEL

# Streams as odd as servers send them, each with the types of the events that a watcher of TRACKED gets from it.
TYPES = ["response.created", "", "response.completed", DONE]
ODD = {
    "crlf": (SHORT.replace(b"\n", b"\r\n"), TYPES),
    "cr": (SHORT.replace(b"\n", b"\r"), TYPES),
    "mixed": (CREATED + DELTA.replace(b"\n", b"\r\n") + DELTA.replace(b"\n", b"\r") + COMPLETED + SENTINEL, TYPES),
    "mixed in one blank line": (SHORT.replace(b"\n\n", b"\n\r\n"), TYPES),
    "carriage return then line feed": (SHORT.replace(b"\n\n", b"\r\n\n"), TYPES),
    "byte order mark": (BOM + SHORT, TYPES),
    "byte order mark and crlf": (BOM + SHORT.replace(b"\n", b"\r\n"), TYPES),
    "comments": (b": hi\n\n" + CREATED + b": keep-alive\n\n" + DELTA + b":\n\n" + COMPLETED, ["", *TYPES[:3]]),
    "comment inside a frame": (b": data: x\n" + CREATED + b": y\n" + DELTA + b": z\n" + COMPLETED, TYPES[:3]),
    "other fields": (b"id: 1\nretry: 10\n" + CREATED + b"id: 2\n" + COMPLETED, [TYPES[0], TYPES[2]]),
    "data only": (b'data: {"type":"response.created"}\n\ndata: {"type":"x"}\n\ndata: [DONE]\n\n', [TYPES[0], "", DONE]),
    "data before event": (b'data: {"type":"response.created"}\nevent: response.created\n\n', [TYPES[0]]),
    "multi-line": (
        b'event: response.created\ndata: {"type":\ndata: "response.created",\ndata:"a":1}\n\n' + DELTA,
        TYPES[:2],
    ),
    "type not first": (b'event: error\ndata: {"sequence_number":1,"type":"error"}\n\n', ["error"]),
    "no space after the colon": (b'event:error\ndata:{"type":"error"}\n\ndata:[DONE]\n\n', ["error", DONE]),
    "spaced json": (b'event: error\ndata: { "type" : "error" }\n\n', ["error"]),
    "sentinel with an event line": (CREATED + b"event: done\ndata: [DONE]\n\n", [TYPES[0], DONE]),
    "no json": (b"data: hello\n\ndata: [1]\n\n" + CREATED + b"event: ping\ndata\n\n", ["", TYPES[0], ""]),
    "event without data": (b"event: response.created\n\n" + CREATED, ["", TYPES[0]]),
    "event line lies": (b'event: response.completed\ndata: {"type":"response.output_text.delta"}\n\n', [""]),
    "longer type": (b'event: error\ndata: {"type":"errors"}\n\n', [""]),
    "more blank lines": (b"\n\n\n" + CREATED + b"\n\n\n\n" + DELTA + b"\n" + COMPLETED, ["", TYPES[0], "", TYPES[2]]),
    "utf-8": (
        'event: error\ndata: {"type":"error","message":"für \U0001d499 \u2028"}\n\n'.encode() * 2,
        ["error", "error"],
    ),
    "runs": (
        DELTA * 3 + CREATED + DELTA * 2 + b": ping\n\n" + DELTA + COMPLETED + DELTA,
        ["", TYPES[0], "", TYPES[2], ""],
    ),
}
EVERY_TYPE = frozenset(data_of(frame)["type"] for frame in CANONICAL.split(b"\n\n") if b'"type"' in frame)


def parsed(chunks: Iterable[bytes], watched: frozenset[str] = TRACKED) -> list[tuple[str, bytes]]:
    """Type and frame of all events of a stream that came in these chunks; neighbours that nobody watches are one."""
    parser = SSEParser(watched)
    events: list[Event] = []
    for chunk in chunks:
        events += parser.feed(chunk)
    events += parser.close()
    joined: list[tuple[str, bytes]] = []
    for event in events:
        if event.type == "" and joined and joined[-1][0] == "":
            joined[-1] = ("", joined[-1][1] + event.frame)
        else:
            joined.append((event.type, event.frame))
    return joined


def one_by_one(stream: bytes) -> Iterable[bytes]:
    return (stream[i : i + 1] for i in range(len(stream)))


def faults_of_cuts(stream: bytes, watched: frozenset[str] = TRACKED) -> list[int]:
    """Where a stream may not be cut in two without changing what is read of it."""
    whole = parsed([stream], watched)
    return [cut for cut in range(len(stream) + 1) if parsed([stream[:cut], stream[cut:]], watched) != whole]


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_comes_out_as_it_went_in(name: str):
    """Watched or not, every byte is handed on."""
    for watched in (frozenset[str](), TRACKED, EVERY_TYPE):
        assert b"".join(frame for _, frame in parsed([RECORDED[name]], watched)) == RECORDED[name]


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_gives_its_watched_events_in_order(name: str):
    """Each watched frame is an event of its own, with its own bytes; the sentinel is known."""
    frames = [frame + b"\n\n" for frame in RECORDED[name].split(b"\n\n") if frame]
    types = [DONE if frame == SENTINEL else data_of(frame)["type"] for frame in frames]
    events = [event for event in parsed([RECORDED[name]]) if event[0]]

    assert events == [(kind, frame) for kind, frame in zip(types, frames, strict=True) if kind in TRACKED | {DONE}]


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_may_be_cut_at_every_byte(name: str):
    """Two pieces are read as one."""
    assert faults_of_cuts(RECORDED[name]) == []


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_recording_may_come_byte_by_byte(name: str, end: bytes):
    """However slow the network, the events are the same."""
    stream = RECORDED[name].replace(b"\n", end)

    assert parsed(one_by_one(stream)) == parsed([stream])
    assert b"".join(frame for _, frame in parsed([stream])) == stream


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_line_ends_change_nothing_but_themselves(end: bytes):
    """A stream in CRLF or CR has the events of the same stream in LF."""
    expected = [(kind, frame.replace(b"\n", end)) for kind, frame in parsed([CANONICAL])]

    assert parsed([CANONICAL.replace(b"\n", end)]) == expected


@pytest.mark.parametrize("name", ODD)
def test_odd_streams_are_read_as_the_standard_says(name: str):
    """Each oddity that servers send gives the types that stand beside it, and loses no byte."""
    stream, types = ODD[name]
    events = parsed([stream])

    assert [kind for kind, _ in events] == types
    assert b"".join(frame for _, frame in events) == stream.removeprefix(BOM)


@pytest.mark.parametrize("name", ODD)
def test_odd_streams_may_be_cut_at_every_byte(name: str):
    """Two pieces are read as one, and so are as many as there are bytes."""
    stream, _ = ODD[name]

    assert faults_of_cuts(stream) == []
    assert parsed(one_by_one(stream)) == parsed([stream])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("left", [0, 1])
def test_a_last_frame_without_its_blank_line_is_read(end: bytes, left: int):
    """Servers forget it at the end of a stream; the frame is completed, so that what follows is not glued to it."""
    last = b'event: response.completed\ndata: {"type":"response.completed"}'
    stream = (CREATED + last + b"\n" * left).replace(b"\n", end)
    events = parsed([stream])

    assert [kind for kind, _ in events] == ["response.created", "response.completed"]
    assert events[-1][1] == last.replace(b"\n", end) + b"\n\n"
    assert faults_of_cuts(stream) == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_truncated_last_frame_is_dropped(end: bytes):
    """What broke off in the middle of its JSON is no event; all before it is."""
    stream = (CREATED + COMPLETED).replace(b"\n", end)
    whole = len(CREATED.replace(b"\n", end))
    data_ends = stream.rindex(b"}") + 1
    cut_short = [parsed([stream[:cut]]) for cut in range(whole, data_ends)]

    assert cut_short == [[("response.created", stream[:whole])]] * len(cut_short)


def test_an_unfinished_sentinel_or_comment_is_dropped():
    """Nothing is lost by it: the gate writes its own sentinel."""
    assert parsed([CREATED, b"data: [DONE]"]) == [("response.created", CREATED)]
    assert parsed([CREATED, b": keep-al"]) == [("response.created", CREATED)]


def test_a_stream_of_nothing_has_no_events():
    """Neither do empty chunks, nor half a byte order mark."""
    assert parsed([]) == []
    assert parsed([b"", b""]) == []
    assert parsed([BOM[:2]]) == []
    assert parsed([BOM]) == []


def test_only_the_first_byte_order_mark_is_one():
    """The standard strips one at the start; elsewhere its bytes are the stream's own."""
    assert parsed([BOM + BOM + CREATED])[0][1] == BOM + CREATED
    assert parsed([CREATED + BOM]) == [("response.created", CREATED)]


def test_frames_come_as_soon_as_they_are_whole():
    """Nobody waits for the next frame to get this one."""
    parser = SSEParser(TRACKED)

    assert [event.type for event in parser.feed(CREATED)] == ["response.created"]
    assert [event.frame for event in parser.feed(DELTA + DELTA[:10])] == [DELTA]
    assert [event.frame for event in parser.feed(DELTA[10:])] == [DELTA]


def test_a_run_that_nobody_watches_is_one_slice():
    """The cost of a stream follows its watched events, not its tokens."""
    events = SSEParser(TRACKED).feed(CREATED + DELTA * 200 + COMPLETED)

    assert [(event.type, len(event.frame)) for event in events] == [
        ("response.created", len(CREATED)),
        ("", 200 * len(DELTA)),
        ("response.completed", len(COMPLETED)),
    ]


def test_the_same_type_is_watched_in_one_stream_and_not_in_another():
    """What one stream skips, another still sees."""
    SSEParser(TRACKED).feed(DELTA * 2)
    events = SSEParser(TRACKED | {"response.output_text.delta"}).feed(DELTA * 2)

    assert [event.frame for event in events] == [DELTA, DELTA]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_frame_beyond_the_limit_is_a_value_error(end: bytes):
    """A stream that never ends a frame must not fill the memory; whole frames may be as many as they like."""
    parser = SSEParser(TRACKED, max_frame_bytes=100)
    parser.feed((DELTA * 10).replace(b"\n", end))
    parser.feed(b": " + b"x" * 98)

    with pytest.raises(ValueError, match="longer than 100 bytes"):
        parser.feed(b"x")


KINDS = st.sampled_from(["response.created", "response.output_text.delta", "error", "keepalive", "acme:beep"])
OBJECTS = st.builds(
    lambda kind, text, last: {"text": text, "type": kind} if last else {"type": kind, "text": text},
    KINDS,
    TEXTS,
    st.booleans(),
)
# The lines of a frame, and the type of its event; "" where there is none.
FRAMES = st.one_of(
    OBJECTS.map(lambda data: ([b"event: " + data["type"].encode(), b"data: " + orjson.dumps(data)], data["type"])),
    OBJECTS.map(lambda data: ([b"data:" + orjson.dumps(data)], data["type"])),
    OBJECTS.map(lambda data: ([b"data: " + line for line in _indented(data)], data["type"])),
    st.sampled_from([[b": ping"], [b"event: error"], [b"data: no json"], [b"id: 3", b": x"]]).map(lambda x: (x, "")),
    st.just(([b"data: [DONE]"], DONE)),
)
LINE_ENDS = st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=8, max_size=8)


def _indented(data: object) -> list[bytes]:
    return orjson.dumps(data, option=orjson.OPT_INDENT_2).split(b"\n")


def _written(lines: Sequence[bytes], ends: Sequence[bytes]) -> bytes:
    """A frame whose lines end so; a CR is not followed by the LF that would make one line end of two."""
    last = ends[len(lines) - 1]
    blank = b"\r\n" if last == b"\r" and ends[7] == b"\n" else ends[7]
    return b"".join(line + end for line, end in zip(lines, ends, strict=False)) + blank


@PATIENT
@given(
    frames=st.lists(st.tuples(FRAMES, LINE_ENDS), max_size=6),
    mark=st.sampled_from([b"", BOM]),
    cuts=st.lists(st.floats(0, 1), max_size=6),
)
def test_any_stream_in_any_pieces(frames, mark: bytes, cuts: list[float]):
    """Frames of any sort, lines ended in any way, cut anywhere: no byte is lost, and each watched event is found."""
    written = [(kind, _written(lines, ends)) for (lines, kind), ends in frames]
    stream = mark + b"".join(frame for _, frame in written)
    places = sorted({int(cut * len(stream)) for cut in cuts})
    events = parsed([stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)])

    assert b"".join(frame for _, frame in events) == stream.removeprefix(BOM)
    assert [event for event in events if event[0]] == [event for event in written if event[0] in TRACKED | {DONE}]
