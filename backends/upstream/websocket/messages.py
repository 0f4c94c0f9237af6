"""Messages of a connection to an upstream in WebSocket mode, without I/O.

An upstream sends each event as one JSON object. Most are deltas that only pass through: those are neither parsed nor
looked at one by one. The messages that arrived together are put into lines, and the expressions that find followed
events in a stream find them there, in every form of JSON.

Source: https://platform.openai.com/docs/guides/websocket-mode
"""

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from backends.upstream.errors import invalid_answer
from backends.upstream.refusals import MAX_REFUSAL_BYTES, MAX_REFUSAL_VALUES
from backends.upstream.scrub import Scrubber
from proxy.wire.bounds import has_more_values
from proxy.wire.call import Call
from proxy.wire.candidates import Pattern, candidate_patterns, candidates
from proxy.wire.event import FOLLOWED, TERMINALS, Event, MessageRun, Run, parse_leniently
from proxy.wire.foreign_errors import read_error
from proxy.wire.json_parser import TooMuchText
from proxy.wire.large_bytes import as_utf8, count_text, find_text, in_one_line, join_pieces, pieces_of
from proxy.wire.large_json import dumps
from proxy.wire.sse import MAX_FRAME_VALUES
from proxy.wire.sse_frame import LONG_FRAME_BYTES

HTTP_FIELDS = ("stream", "stream_options", "background")
"""The fields of a call over HTTP that a message does not have."""
LAST = TERMINALS | {"error"}
"""The types of the message that ends a turn; an upstream whose terminal events are mended has another one."""
SIDE = ("response.steer.", "response.inject.")
"""How the types of messages begin that are no events of a turn."""
LANE = b'"stream_id"'
_SIDE = Pattern(ord("y"), re.compile(rb'y(?=pe"\s*+:\s*+"response\.(?:steer|inject)\.)')), r"\.(?:steer|inject)\."
_LANE_VALUE = rb'\s*+:\s*+"([A-Za-z0-9_.-]{1,256})"\s*+'
_LANE_FIRST = re.compile(rb'(\s*+\{\s*+(?:"type"\s*+:\s*+"[^"\\]*+"\s*+,\s*+)?+)"stream_id"%b,\s*+' % _LANE_VALUE)
_LANE_LAST = re.compile(rb"%b(\}\s*+)" % _LANE_VALUE)
_BEFORE_LAST = re.compile(rb",\s*+\Z")


class MessageReader:
    """Splits the messages of one connection into followed events and the runs of messages between them."""

    def __init__(self, followed: frozenset[str], scrubber: Scrubber, ends: frozenset[str] = LAST) -> None:
        """`followed` are the types that others follow, `ends` those of the message that ends a turn."""
        self.ends = ends
        self._followed = FOLLOWED | followed | ends
        self._scrubber = scrubber
        self._patterns = candidate_patterns(self._followed, _SIDE)

    def read(self, payloads: list[bytes]) -> list[tuple[str | None, Event | Run]]:
        """Return what the messages say, in their order, each with its lane, and without secrets.

        Raises BackendError for a message that is no JSON object, or has too many values.
        """
        lines = _lines_of(payloads)
        if find_text(lines, LANE) < 0:
            return [(None, unit) for unit in self._units(lines)]
        split = map(split_lane, [lines] if len(payloads) == 1 else lines.split(b"\n"))
        return [
            (lane, unit)
            for lane, group in groupby(split, key=lambda found: found[1])
            for unit in self._units(b"\n".join([payload for payload, _ in group]))
        ]

    def _units(self, lines: bytes) -> Iterator[Event | Run]:
        run = end = 0
        for at in candidates(lines, self._patterns) or ():
            if at < end:
                continue  # in the same line as the one before
            start = lines.rfind(b"\n", end, at) + 1 or end
            end = lines.find(b"\n", at)
            end = len(lines) if end < 0 else end
            if (event := self._event(lines[start:end])) is not None:
                if run < start:
                    yield MessageRun(self._scrubber.run(lines[run : start - 1]))
                yield event
                run = end + 1
        if run < len(lines):
            yield MessageRun(self._scrubber.run(lines[run:]))

    def _event(self, payload: bytes) -> Event | None:
        """Return a message as an event, if it is a followed one."""
        payload = self._scrubber.data(payload)
        try:
            data = parse_leniently(payload)
        except TooMuchText as error:
            raise invalid_answer(f"a message that cannot be parsed: {error}") from error
        except ValueError:
            return None
        kind = data.get("type")
        if not (isinstance(kind, str) and (kind in self._followed or kind.startswith(SIDE))):
            return None
        event = Event(kind, data=data, payload=payload)
        if len(payload) >= LONG_FRAME_BYTES:
            event.count_parsed()  # now: long messages are parsed in a thread
        return event


def create_message(call: Call, lane: str | None, *, generates: bool) -> bytes:
    """Return the message that asks for the response of a call."""
    fields: dict[str, Any] = {"type": "response.create"}
    fields |= {name: value for name, value in call.body.items() if name not in HTTP_FIELDS}
    if lane is not None:
        fields["stream_id"] = lane
    if not generates:
        fields["generate"] = False
    return dumps(fields, call.received_bytes)


def _lines_of(payloads: list[bytes]) -> bytes:
    """Return JSON objects as lines. Raises BackendError for what is none, as far as that is seen without parsing."""
    lines = payloads[0] if len(payloads) == 1 else b"\n".join(payloads)
    if not lines.startswith(b"{") or not count_text(lines, b"\n{") == count_text(lines, b"\n") == len(payloads) - 1:
        lines = b"\n".join(map(_line_of, payloads))
    try:
        as_utf8(lines, "strict")
    except UnicodeDecodeError as error:
        raise invalid_answer("a message that is not UTF-8") from error
    if len(lines) > MAX_FRAME_VALUES and any(has_more_values(payload, MAX_FRAME_VALUES) for payload in payloads):
        raise invalid_answer(f"a message of more than {MAX_FRAME_VALUES} values")
    return lines


def _line_of(payload: bytes) -> bytes:
    """Return a JSON object as one line: the line ends in it stand between values. Raises BackendError."""
    line = payload.strip(b" \t\r\n")
    if not line.startswith(b"{"):
        raise invalid_answer("a message that is no JSON object")
    return in_one_line(line)


def split_lane(payload: bytes) -> tuple[bytes, str | None]:
    """Return a message without the lane that it names, and the lane. A message without one stays as it is.

    The lane is the first field, the second one after the type, or the last one, and is cut out there. It is a field of
    the message itself: no object in it can begin or end at these places.
    """
    at = find_text(payload, LANE)
    if at < 0:
        return payload, None
    if find_text(payload, LANE, at + 1) < 0:
        if (first := _LANE_FIRST.match(payload)) is not None:
            rest = pieces_of(payload, first.end(), len(payload))
            return join_pieces([first[1], *rest]), first[2].decode()
        before = _BEFORE_LAST.search(payload, max(0, at - 8), at)
        last = _LANE_LAST.fullmatch(payload, at + len(LANE))
        if before is not None and last is not None:
            return join_pieces([*pieces_of(payload, 0, before.start()), last[2]]), last[1].decode()
    return _split_parsed_lane(payload)


def _split_parsed_lane(payload: bytes) -> tuple[bytes, str | None]:
    try:
        fields = parse_leniently(payload)
    except ValueError:
        return payload, None
    lane = fields.get("stream_id")
    if not isinstance(lane, str):
        return payload, None
    return dumps({name: value for name, value in fields.items() if name != "stream_id"}, len(payload)), lane


def fields_of(payload: bytes) -> Mapping[str, Any]:
    """Return the object in a message; an empty one for a message that is none."""
    try:
        return parse_leniently(payload)
    except ValueError:
        return {}


def refusal_of(payload: bytes) -> tuple[int, dict[str, str], Mapping[str, Any]]:
    """Return the status, the headers (names in lower case) and the error of an `error` message.

    One that is too large to be forwarded has an error without words. A message without a status is a fault of the
    upstream, unless its type or code stands for another. Some servers have the fields of the error at the top level.
    """
    is_large = len(payload) > MAX_REFUSAL_BYTES or has_more_values(payload, MAX_REFUSAL_VALUES)
    fields = {} if is_large else fields_of(payload)
    inner, status = fields.get("error"), fields.get("status")
    flat = {name: fields.get(name) for name in ("code", "message", "param")}
    error = dict(inner) if isinstance(inner, dict) else flat | ({"message": inner} if isinstance(inner, str) else {})
    if not isinstance(status, int) or not 400 <= status < 600:
        read = read_error({name: value for name, value in fields.items() if name != "status"})
        status = 502 if read is None else read.status or 502
    sent = error.pop("headers", None)
    headers = sent if isinstance(sent, dict) else {}
    return status, {str(name).lower(): value for name, value in headers.items() if isinstance(value, str)}, error
