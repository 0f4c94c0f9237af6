"""Bytes in chunks of any size become followed events and runs that keep their own bytes."""

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.wire import event, json_parser, large_json
from proxy.wire.event import FOLLOWED, Event, Run, parse_payload
from proxy.wire.sse import MAX_CANDIDATES, MAX_FRAME_BYTES, SSEParser
from proxy.wire.sse_frame import payload_of

BOM = b"\xef\xbb\xbf"  # U+FEFF in UTF-8
DATA = Path(__file__).parent.parent / "data"
RECORDED = {path.stem: path.read_bytes() for path in sorted(DATA.glob("*.sse"))}
CANONICAL = RECORDED["canonical"]
CREATED = b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
COMPLETED = b'event: response.completed\ndata: {"type":"response.completed","sequence_number":2}\n\n'
SENTINEL = b"data: [DONE]\n\n"
SHORT = CREATED + DELTA + DELTA + COMPLETED + SENTINEL
ENDS = [b"\n", b"\r\n", b"\r"]

# Streams that servers send, each with the types that the parser returns for it; "" is a run.
TYPES = ["response.created", "", "response.completed"]
DIALECTS = {
    "crlf": (SHORT.replace(b"\n", b"\r\n"), TYPES),
    "cr": (SHORT.replace(b"\n", b"\r"), TYPES),
    "mixed": (CREATED + DELTA.replace(b"\n", b"\r\n") + DELTA.replace(b"\n", b"\r") + COMPLETED + SENTINEL, TYPES),
    "mixed in one blank line": (SHORT.replace(b"\n\n", b"\n\r\n"), TYPES),
    "carriage return then line feed": (SHORT.replace(b"\n\n", b"\r\n\n"), TYPES),
    "byte order mark": (BOM + SHORT, TYPES),
    "byte order mark and crlf": (BOM + SHORT.replace(b"\n", b"\r\n"), TYPES),
    "comments": (b": hi\n\n" + CREATED + b": keep-alive\n\n" + DELTA + b":\n\n" + COMPLETED, ["", *TYPES]),
    "comment inside a frame": (b": data: x\n" + CREATED + b": y\n" + DELTA + b": z\n" + COMPLETED, TYPES),
    "other fields": (b"id: 1\nretry: 10\n" + CREATED + b"id: 2\n" + COMPLETED, [TYPES[0], TYPES[2]]),
    "data only": (b'data: {"type":"response.created"}\n\ndata: {"type":"x"}\n\ndata: [DONE]\n\n', TYPES[:2]),
    "data before event": (b'data: {"type":"response.created"}\nevent: response.created\n\n', TYPES[:1]),
    "multi-line": (
        b'event: response.created\ndata: {"type":\ndata: "response.created",\ndata:"a":1}\n\n' + DELTA,
        TYPES[:2],
    ),
    "multi-line before the colon": (b'data: {"type"\ndata::"error"}\n\n', ["error"]),
    "multi-line with a comment between": (b'data: {"type":\n: "x"\nid: "y"\ndata: "error"}\n\n', ["error"]),
    "type not first": (b'event: error\ndata: {"sequence_number":1,"type":"error"}\n\n', ["error"]),
    "no space after the colon": (b'event:error\ndata:{"type":"error"}\n\ndata:[DONE]\n\n', ["error"]),
    "spaced json": (b'event: error\ndata: { "type" : \t"error" }\n\n', ["error"]),
    "sentinel with an event line": (CREATED + b"event: done\ndata: [DONE]\n\n", TYPES[:1]),
    "sentinels of any spacing": (b"data:[DONE]\n\ndata:   [DONE]\t \n\ndata:\ndata: [DONE]\n\n", []),
    "sentinel between deltas": (DELTA + SENTINEL + DELTA, ["", ""]),
    "sentinel inside other data": (b"data: [DONE]\ndata: 1\n\ndata: x[DONE]\n\n: [DONE]\n\n", [""]),
    "no json": (b"data: hello\n\ndata: [1]\n\n" + CREATED + b"event: ping\ndata\n\n", ["", TYPES[0], ""]),
    "event without data": (b"event: response.created\n\n" + CREATED, ["", TYPES[0]]),
    "wrong event line": (b'event: response.completed\ndata: {"type":"response.output_text.delta"}\n\n', [""]),
    "event line of another type": (b'event: ping\ndata: {"type":"error"}\n\n', ["error"]),
    "longer type": (b'event: error\ndata: {"type":"errors"}\n\n', [""]),
    "type that is no string": (b'data: {"type":["error"]}\n\ndata: {"type":{"type":"error"}}\n\n', [""]),
    "more blank lines": (
        b"\n\n\n" + CREATED + b"\n\n\n\n" + DELTA + b"\n" + COMPLETED,
        ["", TYPES[0], "", TYPES[2]],
    ),
    "one more line end": (CREATED + b"\n" + COMPLETED + b"\r\n" + CREATED, [*TYPES, "", TYPES[0]]),
    "utf-8": (
        'event: error\ndata: {"type":"error","message":"für \U0001d499 \u2028"}\n\n'.encode() * 2,
        ["error", "error"],
    ),
    "runs": (
        DELTA * 3 + CREATED + DELTA * 2 + b": ping\n\n" + DELTA + COMPLETED + DELTA,
        ["", TYPES[0], "", TYPES[2], ""],
    ),
    "nested type before": (b'data: {"item":{"type":"response.completed"},"type":"response.output_text.delta"}\n\n', [""]),
    "nested type after": (b'data: {"type":"x","item":{"type":"response.completed"}}\n\n', [""]),
    "nested type in a list": (b'data: {"a":[{"type":"error"}],"type":"response.created","b":[{"type":"error"}]}\n\n', TYPES[:1]),
    "type as text": (b'data: {"type":"x","delta":"\\"type\\":\\"error\\"","e":["type","error"]}\n\n', [""]),
    "duplicate type": (b'data: {"type":"error","type":"x"}\n\ndata: {"type":"x","type":"error"}\n\n', ["", "error"]),
    "escaped key": (b'data: {"\\u0074ype":"error"}\n\ndata: {"\\u0074yp\\u0065" : "error"}\n\n', ["error"] * 2),
    "escaped value": (b'data: {"type":"response.c\\u006fmpleted"}\n\ndata: {"type":"response\\u002Ecreated"}\n\n', [TYPES[2], TYPES[0]]),
    "escapes of other characters": (DELTA.replace(b'"a"', b'"\\u00e9\\n\\\\u0074ype\\u003c"') * 2, [""]),
    "escaped backslash before a code": (b'data: {"\\\\u0074ype":"error"}\n\n', [""]),
}  # fmt: skip
EVERY_TYPE = frozenset(parse_payload(payload_of(f))["type"] for f in CANONICAL.split(b"\n\n") if b'"type"' in f)


def parsed(chunks: Iterable[bytes], followed: frozenset[str] = FOLLOWED) -> list[tuple[str, bytes]]:
    """Return type and bytes of all that the parser returns for these chunks; adjacent runs are joined."""
    parser = SSEParser(followed)
    parts = [part for chunk in chunks for part in parser.feed(chunk)]
    return joined((part.type, part.sse) for part in parts + parser.close())


def joined(parts: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    result: list[tuple[str, bytes]] = []
    for kind, sse in parts:
        if kind == "" and result and result[-1][0] == "":
            result[-1] = ("", result[-1][1] + sse)
        else:
            result.append((kind, sse))
    return result


def concatenated(parts: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(sse for _, sse in parts)


def without_sentinels(stream: bytes) -> bytes:
    return re.sub(rb"(?:event: done[\r\n]+)?data:(?:\ndata:)?[ ]*\[DONE\][\t ]*(\r\n|\n|\r)(\r\n|\n|\r)", b"", stream)


def one_by_one(stream: bytes) -> Iterator[bytes]:
    return (stream[i : i + 1] for i in range(len(stream)))


def wrong_cuts(stream: bytes) -> list[int]:
    """Return where a stream cannot be cut in two without a change of the result."""
    whole = parsed([stream])
    return [cut for cut in range(len(stream) + 1) if parsed([stream[:cut], stream[cut:]]) != whole]


def reference(stream: bytes, followed: frozenset[str] = FOLLOWED) -> list[tuple[str, bytes]]:
    """Return what the parser should: line by line as the standard says, and every frame parsed."""
    parts: list[tuple[str, bytes]] = []
    frame, data = b"", []
    lines = re.findall(rb"([^\r\n]*)(\r\n|\n|\r|\Z)", stream.removeprefix(BOM))
    for line, end in lines:
        frame += line + end
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        if line == b"" and end and frame == end:
            parts.append(("", frame))
        elif line == b"" and end:
            payload = b"\n".join(data)
            if payload.strip() != b"[DONE]":
                parts.append((reference_type(payload, followed), frame))
        else:
            continue
        frame, data = b"", []
    if reference_type(b"\n".join(data), None):
        parts.append((reference_type(b"\n".join(data), followed), frame.rstrip(b"\r\n") + b"\n\n"))
    return joined(parts)


def reference_type(payload: bytes, followed: frozenset[str] | None) -> str:
    """Return the type of a followed event, or "". If none are given, return "object" for every object."""
    try:
        data = orjson.loads(payload)
    except ValueError:
        return ""
    if not isinstance(data, dict):
        return ""
    if followed is None:
        return "object"
    return next((kind for kind in followed if data.get("type") == kind), "")


@pytest.mark.parametrize("name", RECORDED)
def test_no_byte_of_a_recording_but_its_sentinel_changes(name: str):
    """The bytes are the same whichever types are followed."""
    for followed in (frozenset[str](), FOLLOWED, EVERY_TYPE):
        assert concatenated(parsed([RECORDED[name]], followed)) == RECORDED[name].removesuffix(SENTINEL)


@pytest.mark.parametrize("name", RECORDED)
def test_followed_events_of_a_recording_come_in_order(name: str):
    """Each followed frame is an event of its own with its own bytes."""
    frames = [frame + b"\n\n" for frame in RECORDED[name].removesuffix(SENTINEL).split(b"\n\n") if frame]
    types = [parse_payload(payload_of(frame))["type"] for frame in frames]
    events = [event for event in parsed([RECORDED[name]]) if event[0]]

    assert events == [(kind, frame) for kind, frame in zip(types, frames, strict=True) if kind in FOLLOWED]


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "canonical_nodone"])  # a part of another one
def test_a_recording_can_be_cut_at_every_byte(name: str):
    """Two chunks give the same result as one."""
    assert wrong_cuts(RECORDED[name]) == []


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("end", ENDS)
def test_a_recording_can_arrive_byte_by_byte(name: str, end: bytes):
    """The events are the same in the smallest chunks."""
    stream = RECORDED[name].replace(b"\n", end)

    assert parsed(one_by_one(stream)) == parsed([stream])
    assert concatenated(parsed([stream])) == stream.removesuffix(SENTINEL.replace(b"\n", end))


@pytest.mark.parametrize("most", [1, 2, 3, 24])
@pytest.mark.parametrize("name", DIALECTS)
def test_units_can_be_returned_some_at_a_time(name: str, most: int):
    """None is lost or repeated, in any chunks, and no call returns more than it may."""
    stream, _ = DIALECTS[name]
    for chunks in ([stream], one_by_one(stream), [stream[: len(stream) // 2], stream[len(stream) // 2 :]]):
        parser = SSEParser(FOLLOWED, max_units=most)
        parts: list[Event | Run] = []
        for chunk in chunks:
            parts += (returned := parser.feed(chunk))
            assert len(returned) <= most
            while parser.has_more:
                parts += (returned := parser.more())
                assert len(returned) <= most

        assert joined((part.type, part.sse) for part in parts + parser.close()) == parsed([stream])


@pytest.mark.parametrize("frame", [b"DONE]\n\n", b"data: [DONE]\n\n", b'data: {"a":{"type":"error"}}\n\n'])
def test_frames_that_only_look_like_events_are_read_in_portions(frame: bytes):
    """They give no units that could be counted: one chunk of them would hold other calls for 80 ms."""
    parser, count = SSEParser(FOLLOWED, max_units=24), 4 * MAX_CANDIDATES
    parts, steps = parser.feed(frame * count), 0
    while parser.has_more:
        parts += parser.more()
        steps += 1

    assert steps == 4
    assert concatenated([(part.type, part.sse) for part in parts]) == (b"" if b"[DONE]" in frame else frame * count)


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_line_ends_change_nothing_but_themselves(end: bytes):
    """A stream in CRLF or CR has the events of the same stream in LF."""
    expected = [(kind, sse.replace(b"\n", end)) for kind, sse in parsed([CANONICAL])]

    assert parsed([CANONICAL.replace(b"\n", end)]) == expected


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_is_read_as_the_standard_says(name: str):
    """Each stream gives the types beside it and loses no byte but its sentinels."""
    stream, types = DIALECTS[name]
    parser = SSEParser(FOLLOWED)
    parts = parser.feed(stream) + parser.close()

    assert [part.type for part in parts] == types
    assert b"".join(part.sse for part in parts) == without_sentinels(stream.removeprefix(BOM))
    assert parsed([stream]) == reference(stream)


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_can_be_cut_at_every_byte(name: str):
    """Two chunks give the same result as one, and so do as many as there are bytes."""
    stream, _ = DIALECTS[name]

    assert wrong_cuts(stream) == []
    assert parsed(one_by_one(stream)) == parsed([stream])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("left", [0, 1])
def test_a_last_frame_without_its_blank_line_is_read(end: bytes, left: int):
    """The blank line is added, so that the frame stays apart from what is sent after it."""
    last = b'event: response.completed\ndata: {"type":"response.completed"}'
    stream = (CREATED + last + b"\n" * left).replace(b"\n", end)
    events = parsed([stream])

    assert [kind for kind, _ in events] == ["response.created", "response.completed"]
    assert events[-1][1] == last.replace(b"\n", end) + b"\n\n"
    assert wrong_cuts(stream) == []


def test_a_last_delta_without_its_blank_line_is_a_run():
    """Types that are not followed are completed as well."""
    assert parsed([CREATED, DELTA[:-2]]) == [("response.created", CREATED), ("", DELTA)]


@pytest.mark.parametrize("end", ENDS)
def test_a_truncated_last_frame_is_dropped(end: bytes):
    """A frame cut off inside its JSON is no event; all frames before it are returned."""
    stream = (CREATED + COMPLETED).replace(b"\n", end)
    whole = len(CREATED.replace(b"\n", end))
    data_ends = stream.rindex(b"}") + 1
    truncated = [parsed([stream[:cut]]) for cut in range(whole, data_ends)]

    assert truncated == [[("response.created", stream[:whole])]] * len(truncated)


def test_an_unfinished_sentinel_or_comment_is_dropped():
    """Nothing is lost by it: the sender writes its own sentinel."""
    assert parsed([CREATED, b"data: [DONE]"]) == [("response.created", CREATED)]
    assert parsed([CREATED, b": keep-al"]) == [("response.created", CREATED)]


def test_an_empty_stream_has_no_events():
    """Empty chunks and a byte order mark, whole or not, give nothing."""
    assert parsed([]) == []
    assert parsed([b"", b""]) == []
    assert parsed([BOM[:2]]) == []
    assert parsed([BOM]) == []


def test_only_the_first_byte_order_mark_is_removed():
    """The standard strips one at the start; a later one makes its line an unknown field."""
    assert parsed([BOM + BOM + CREATED])[0][1] == BOM + CREATED
    assert parsed([CREATED + BOM]) == [("response.created", CREATED)]


def test_frames_are_returned_as_soon_as_they_are_whole():
    """No frame waits for the next one, nor does a blank line alone."""
    parser = SSEParser(FOLLOWED)

    assert [part.type for part in parser.feed(CREATED)] == ["response.created"]
    assert [part.sse for part in parser.feed(DELTA + DELTA[:10])] == [DELTA]
    assert [part.sse for part in parser.feed(DELTA[10:])] == [DELTA]
    assert [part.sse for part in parser.feed(b"\n\n")] == [b"\n\n"]


def test_a_crlf_frame_is_returned_with_its_last_byte():
    """A frame that ends in CRLF CRLF does not wait, nor is it cut before its last LF."""
    parser = SSEParser(FOLLOWED)
    frame = CREATED.replace(b"\n", b"\r\n")

    assert parser.feed(frame[:-1]) == []
    assert [part.sse for part in parser.feed(frame[-1:])] == [frame]


def test_only_the_last_frame_that_ends_in_cr_waits():
    """An LF may belong to the last CR; frames before it are returned at once."""
    parser = SSEParser(FOLLOWED)
    frame = CREATED.replace(b"\n", b"\r")

    assert [part.sse for part in parser.feed(frame * 3)] == [frame] * 2
    assert [part.sse for part in parser.feed(b":")] == [frame]


@pytest.mark.parametrize("end", [*ENDS, b"\n\r\n"])
def test_a_frame_of_any_length_ends_at_its_blank_line(end: bytes):
    """The search for it goes in windows, at whose edges it may lie."""
    lengths = [*range(980, 1030), *range(3020, 3080), 100_000]
    frames = [b'data: {"type":"error","a":"%b"}%b' % (b"x" * n, end * (1 + (len(end) < 3))) for n in lengths]

    assert [sse for _, sse in parsed([b"".join(frames)])] == frames


@pytest.mark.parametrize("end", ENDS)
def test_consecutive_frames_that_are_not_followed_are_one_run(end: bytes):
    """The number of parts depends on the followed events, not on the deltas."""
    stream = (CREATED + DELTA * 200 + COMPLETED).replace(b"\n", end)
    parts = SSEParser(FOLLOWED).feed(stream + b":")

    assert [(part.type, len(part.sse)) for part in parts] == [
        ("response.created", len(CREATED.replace(b"\n", end))),
        ("", 200 * len(DELTA.replace(b"\n", end))),
        ("response.completed", len(COMPLETED.replace(b"\n", end))),
    ]


def test_the_sentinel_cuts_a_run():
    """What comes before it and after it are two slices of the bytes received."""
    parts = SSEParser(FOLLOWED).feed(DELTA + SENTINEL + DELTA)

    assert [part.sse for part in parts] == [DELTA, DELTA]
    assert all(isinstance(part, Run) for part in parts)


def test_a_followed_event_has_its_data():
    """The JSON that decided on the type is not parsed again."""
    (event,) = SSEParser(FOLLOWED).feed(COMPLETED)

    assert isinstance(event, Event)
    assert event.data is event.data
    assert event.data == {"type": "response.completed", "sequence_number": 2}
    assert event.json == b'{"type":"response.completed","sequence_number":2}'


def test_each_parser_follows_its_own_types():
    """Two streams can follow different types."""
    SSEParser(FOLLOWED).feed(DELTA * 2)
    events = SSEParser(FOLLOWED | {"response.output_text.delta"}).feed(DELTA * 2)

    assert [event.sse for event in events] == [DELTA, DELTA]


@pytest.mark.parametrize("kind", ["größe", "a/b", 'q"uote', "back\\slash", "new\nline", "\U0001d499", "a|b.*"])
def test_any_type_can_be_followed(kind: str):
    """Raw, escaped by character, or escaped by code, the type is the same."""
    codes = re.sub("....", r"\\u\g<0>", kind.encode("utf-16-be").hex())
    texts = [orjson.dumps(kind).decode(), f'"{codes}"', orjson.dumps(kind).decode().replace("/", "\\/")]
    frames = ['data: {"type":%s}\n\n' % text for text in texts]  # noqa: UP031  braces

    assert parsed(["".join(frames).encode()], frozenset({kind})) == [(kind, frame.encode()) for frame in frames]


@pytest.mark.parametrize("end", ENDS)
def test_a_frame_beyond_the_limit_is_a_value_error(end: bytes):
    """A frame that never ends must not fill the memory; the number of whole frames has no limit."""
    parser = SSEParser(FOLLOWED, max_frame_bytes=100)
    parser.feed((DELTA * 10).replace(b"\n", end) + b":\n\n")
    parser.feed(b": " + b"x" * 98)

    with pytest.raises(ValueError, match="longer than 100 bytes"):
        parser.feed(b"x")


def test_a_followed_frame_of_too_many_values_is_a_value_error():
    """Parsing them would take long; a frame that is not followed is not parsed."""
    many = b'data: {"type":"%b","a":[' + b"1," * 200_000 + b"1]}\n\n"

    assert SSEParser(FOLLOWED).feed(many % b"keepalive")
    with pytest.raises(ValueError, match="more than 200000 values"):
        SSEParser(FOLLOWED).feed(many % b"response.completed")


@pytest.mark.parametrize("size", [98, 99])
@pytest.mark.parametrize("before", [b"", DELTA])
@pytest.mark.parametrize("after", [b"", DELTA])
def test_the_limit_holds_for_a_frame_inside_one_chunk(size: int, before: bytes, after: bytes):
    """The blank line counts."""
    stream = before + b":" + b"x" * (size - 1) + b"\n\n" + after
    parser = SSEParser(FOLLOWED, max_frame_bytes=100)

    if size == 98:
        assert b"".join(part.sse for part in parser.feed(stream)) == stream
    else:
        with pytest.raises(ValueError, match="longer than 100 bytes"):
            parser.feed(stream)


def test_many_frames_beyond_the_limit_together_pass():
    """In any line ends, with blank lines before, between and after them."""
    for stream in (DELTA * 40, b"\n\n" + (DELTA + b"\n") * 40 + b"\n", (DELTA + b"\r\n") * 40 + b":\n\n"):
        parser = SSEParser(FOLLOWED, max_frame_bytes=len(DELTA) + 1)
        passed = b"".join(part.sse for part in (*parser.feed(stream), *parser.close()))

        assert passed == stream


def test_the_length_of_a_frame_is_found_in_few_steps():
    """A regular expression over all of it took 0.8 s, during which no other thread could run."""
    parser = SSEParser(FOLLOWED)
    parser.feed(b"data: " + b"x" * (MAX_FRAME_BYTES - 6))
    calls: list[str] = []
    sys.setprofile(lambda _frame, event, function: calls.append(function.__name__) if event == "c_call" else None)
    try:
        with pytest.raises(ValueError):  # noqa: PT011  `match` would search, too
            parser.feed(b"x")
    finally:
        sys.setprofile(None)

    assert not {"finditer", "search"} & set(calls)


def cost(stream: bytes, chunk_bytes: int = 4096) -> float:
    """Return the least CPU time of several runs, in seconds."""
    costs = []
    for _ in range(3):
        parser = SSEParser(FOLLOWED)
        start = time.process_time()
        for i in range(0, len(stream), chunk_bytes):
            parser.feed(stream[i : i + chunk_bytes])
        costs.append(time.process_time() - start)
    return min(costs)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("begin", "unit"),
    [
        pytest.param(b'data: {"type":"response.completed","a":"', b"x" * 16, id="one long line"),
        pytest.param(b"", b"data: 1\n", id="many lines"),
        pytest.param(b"", b"\n", id="blank lines"),
        pytest.param(b"", b'data: {"a":{"type":"error"}}\n\n', id="candidates in many frames"),
        pytest.param(b"data: [", b'{"type":"error"},', id="candidates in one frame"),
    ],
)
def test_cost_grows_with_the_bytes_and_not_with_their_square(begin: bytes, unit: bytes, end: bytes):
    """Four times the bytes cost about four times as much; quadratic work would cost sixteen times as much.

    This compares CPU times in one process with a wide margin, as nothing counts the bytes that `re` and `find` read.
    """
    size = 1 << 18
    small, large = ((begin + unit * (n // len(unit))).replace(b"\n", end) + end * 2 for n in (size, 4 * size))

    assert cost(large) < 8 * cost(small) + 0.005


SETTINGS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
KINDS = st.sampled_from(["response.created", "response.output_text.delta", "error", "keepalive", "acme:beep", "type"])
TEXTS = st.text(max_size=8).filter(lambda text: text.isprintable() or "\n" in text)


@st.composite
def literals(draw: st.DrawFn, text: str) -> str:
    """A JSON string that means this text, some characters as escapes."""
    escaped = draw(st.sets(st.integers(0, max(0, len(text) - 1)), max_size=2)) if draw(st.booleans()) else set()
    form = draw(st.sampled_from(["\\u%04x", "\\u%04X"]))
    plain = [orjson.dumps(char).decode()[1:-1] for char in text]
    spelled = [form % ord(c) if i in escaped and c < "\uffff" else plain[i] for i, c in enumerate(text)]
    return '"' + "".join(spelled) + '"'


@st.composite
def objects(draw: st.DrawFn, depth: int = 2) -> str:
    """A JSON object with `type` at any place, or at several, or at none, and others like it inside."""
    space = st.sampled_from(["", "", " ", "\t", "\n"])
    pairs = []
    for key in draw(st.lists(st.sampled_from(["type", "type", "delta", "item", "typ"]), max_size=3)):
        values = [KINDS.flatmap(literals), TEXTS.flatmap(literals), st.sampled_from(["1", "null", "[]", '["error"]'])]
        if depth:
            values += [objects(depth - 1), objects(depth - 1).map(lambda text: f"[{text}]")]
        value = draw(st.one_of(values[0] if key == "type" and draw(st.booleans()) else st.one_of(values)))
        pairs.append(draw(space) + draw(literals(key)) + draw(space) + ":" + draw(space) + value + draw(space))
    return "{" + ",".join(pairs) + "}"


def data_lines(text: str) -> st.SearchStrategy[list[bytes]]:
    return st.sampled_from([b"data: ", b"data:"]).map(lambda field: [field + x for x in text.encode().split(b"\n")])


FIELDS = st.one_of(
    KINDS.map(lambda kind: [b"event: " + kind.encode()]),
    st.sampled_from([[b": ping"], [b': "type":"error"'], [b"id: 3"], [b"retry: 10"], [b"data"], [b"data: x"]]),
)
SENTINELS = st.sampled_from([[b"data: [DONE]"], [b"data:[DONE]"], [b"event: done", b"data:  [DONE] "]])
FRAMES = st.one_of(
    st.lists(st.one_of(FIELDS, objects().flatmap(data_lines)), max_size=3).map(
        lambda parts: [*chain.from_iterable(parts)]
    ),
    st.tuples(KINDS, objects().flatmap(data_lines)).map(lambda x: [b"event: " + x[0].encode(), *x[1]]),
    objects().flatmap(data_lines),
    SENTINELS,
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Frames whose lines all end alike, or each in its own way; the last one may be cut off."""
    stream = draw(st.sampled_from([b"", b"", BOM]))
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r", None]))
    for lines in draw(st.lists(FRAMES, max_size=6)):
        for line in [*lines, b""]:
            stream += line + (draw(st.sampled_from(ENDS)) if end is None else end)
    return stream[: len(stream) - draw(st.sampled_from([0, 0, 0, 1, 2, 3, 5]))]


TOKENS = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\r\n\r\n",
    b"data:",
    b"data: ",
    b"data",
    b": ",
    b'{"type":',
    b'"type"',
    b'"error"',
]
TOKENS += [
    b"}",
    b"{",
    b":",
    b",",
    b'"a":',
    b"[DONE]",
    b"\\u0074",
    b'"typ\\u0065"',
    b" ",
    b'{"type":"error"}',
    BOM,
    b"\xff",
]
SOUP = st.lists(st.sampled_from(TOKENS), max_size=24).map(b"".join)
CUTS = st.lists(st.floats(0, 1), max_size=6)


def cut(stream: bytes, cuts: Sequence[float]) -> list[bytes]:
    places = sorted({int(place * len(stream)) for place in cuts})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@SETTINGS
@given(stream=streams(), cuts=CUTS)
def test_any_stream_in_any_chunks_is_read_like_the_reference(stream: bytes, cuts: list[float]):
    """Followed events and the bytes between them are those of a parser that parses every frame."""
    assert parsed(cut(stream, cuts)) == reference(stream)
    assert parsed(one_by_one(stream)) == reference(stream)


@SETTINGS
@given(parts=st.lists(streams(), min_size=1, max_size=3), counts=st.lists(st.integers(0, 60), min_size=3, max_size=3))
def test_any_stream_among_many_deltas_is_read_like_the_reference(parts: list[bytes], counts: list[int]):
    """Large chunks are searched in windows."""
    stream = b"".join(part + count * DELTA for part, count in zip(parts, counts, strict=False))

    assert parsed([stream]) == reference(stream)


@SETTINGS
@given(stream=SOUP, cuts=CUTS)
def test_broken_streams_in_any_chunks_are_read_like_the_reference(stream: bytes, cuts: list[float]):
    """Pieces of frames in any order give the same result."""
    assert parsed(cut(stream, cuts)) == reference(stream)
    assert parsed(one_by_one(stream)) == reference(stream)


def test_a_followed_event_with_too_much_json_ends_the_stream(monkeypatch: pytest.MonkeyPatch):
    """It is not passed on unread: a rule may apply to it."""
    monkeypatch.setattr(event, "DENSE_BYTES", 1)
    monkeypatch.setattr(large_json, "LARGE_BYTES", 1)
    monkeypatch.setattr(json_parser, "MAX_REST_BYTES", 10)
    parser = SSEParser(FOLLOWED)

    with pytest.raises(ValueError, match="more than 10 bytes of JSON"):
        parser.feed(b'data: {"type":"response.completed","response":{}}\n\n')


def test_a_frame_of_many_values_is_left_for_a_call_of_its_own():
    """The caller may make that call in a thread. Frames of fewer values, and deltas, are returned at once."""
    dense = COMPLETED.replace(b"2}", b"[%b1]}" % (b"1," * 50))
    parser = SSEParser(FOLLOWED, max_values=50)

    assert [unit.sse for unit in parser.feed(CREATED + DELTA + dense + CREATED)] == [CREATED]
    assert parser.takes_long
    assert parser.has_more
    assert [unit.sse for unit in parser.more()] == [DELTA, dense, CREATED]
    assert not parser.takes_long
    assert not parser.has_more


def test_events_of_one_type_have_its_name_in_common():
    """Thousands of streams keep their first events."""
    frame = b'data: {"type":"response.created","sequence_number":0}\n\n'
    first, other = (next(unit.type for unit in SSEParser(FOLLOWED).feed(frame)) for _ in range(2))

    assert first is other
