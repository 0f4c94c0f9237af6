"""The messages in the journal of a shared flight: facts as JSON, their length before them (4 bytes), and content.

A store may return what others wrote, such as another version: what has another shape is no message.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from proxy.cache.entry import ECHOED, is_kept_header
from proxy.wire.event import Reply, parse_leniently, response_reply


class FlightMessage(NamedTuple):
    """One message: a head, frames, or an end."""

    kind: str
    facts: Mapping[str, Any]
    content: bytes


@dataclass(frozen=True, slots=True)
class FlightHead:
    """What a reply begins with. `body` is its whole answer; None for a stream."""

    headers: Mapping[str, str]
    target: str | None
    echoed: Mapping[str, Any]
    body: Reply | None

    @staticmethod
    def of(message: FlightMessage) -> "FlightHead | None":
        """Return the head in a message; None if it is none."""
        facts = message.facts
        headers, target, echoed, is_body = (facts.get(name) for name in ("headers", "target", "echoed", "is_body"))
        if message.kind != "head" or not isinstance(headers, dict) or not isinstance(echoed, dict):
            return None
        is_one = isinstance(target, str | None) and isinstance(is_body, bool) and echoed.keys() == {*ECHOED}
        if not is_one or not all(is_kept_header(name, value) for name, value in headers.items()):
            return None
        if not is_body:
            return FlightHead(headers, target, echoed, None)
        try:
            response = parse_leniently(message.content)
        except ValueError:
            return None
        return FlightHead(headers, target, echoed, response_reply(response, headers, message.content))


def encode_message(facts: Mapping[str, Any], content: bytes) -> bytes:
    """Return a message with a kind among its facts. Raises JSONEncodeError for facts that are nested too deeply."""
    text = orjson.dumps(facts)
    return len(text).to_bytes(4) + text + content


def decode_message(message: bytes | None) -> FlightMessage | None:
    """Return a message in its stored form; None for what is none."""
    if message is None:
        return None
    end = 4 + int.from_bytes(message[:4])
    try:
        facts = orjson.loads(message[4:end])
    except orjson.JSONDecodeError:
        return None
    if not isinstance(facts, dict) or not isinstance(kind := facts.get("kind"), str):
        return None
    return FlightMessage(kind, facts, message[end:])
