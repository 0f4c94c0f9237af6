"""Messages of callers that concern a response while it is generated: steering and injected input.

Source: openai-python (ResponseSteerEvent, BetaResponseInjectEvent)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.wire.call import Call
from proxy.wire.items import JSON
from proxy.wire.large_json import dumps

STEER, INJECT = "response.steer", "response.inject"
RESPONSE_FIELDS = {STEER: "previous_response_id", INJECT: "response_id"}
"""The field that names the response, by the type of the message."""
INJECT_BETA = "responses_multi_agent"
"""The value of `OpenAI-Beta` for which input can be injected."""
STEERED_PARTS = frozenset({"input_text", "input_image", "input_file"})


@dataclass(frozen=True, slots=True)
class SideMessage:
    """One such message. `given` is its input as it was sent."""

    kind: str
    response_id: str
    given: Any

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "SideMessage":
        kind = str(body.get("type"))
        named = body.get(RESPONSE_FIELDS[kind])
        return cls(kind, "" if named is None else str(named), body.get("input", []))

    @property
    def items(self) -> Sequence[JSON] | None:
        """Its input as items; None for one that is not valid. Steering has messages of the user only."""
        given = self.given
        if isinstance(given, str) and given and self.kind == STEER:
            given = [{"type": "message", "role": "user", "content": given}]
        if not isinstance(given, list) or not given or not all(isinstance(item, dict) for item in given):
            return None
        return given if self.kind == INJECT or all(map(_is_user_message, given)) else None

    def call(self, headers: Mapping[str, str], query: str, received_bytes: int) -> Call:
        """Return the message, which had about so many bytes, as a request that policies check.

        It is one that adds items to what exists.
        """
        return Call({"items": self.items}, headers, query, "items", received_bytes)

    def encode(self, items: object, size_bytes: int) -> bytes:
        """Return the message, of about so many bytes, as its backend receives it, with items that policies passed."""
        message = {"type": self.kind, RESPONSE_FIELDS[self.kind]: self.response_id, "input": items}
        return dumps(message, size_bytes)

    def failed(self, code: str, message: str, size_bytes: int) -> bytes:
        """Return the answer, of about so many bytes, that gives the input back."""
        error = {"code": code, "message": message}
        failure: JSON = {"type": f"{self.kind}.failed", "sequence_number": 0}
        if self.kind == INJECT:
            inject = {"response_id": self.response_id, "input": self.given, "error": error}
            return dumps(failure | inject, size_bytes)
        error["type"] = "invalid_request_error"
        steer = {"previous_response_id": self.response_id, "input": self.given}
        return dumps(failure | {"steer": steer, "error": error}, size_bytes)


def _is_user_message(item: Mapping[str, Any]) -> bool:
    if not {*item} <= {"type", "role", "content"} or item.get("role") != "user":
        return False
    content = item.get("content")
    parts = content if isinstance(content, list) else []
    return item.get("type", "message") == "message" and (
        isinstance(content, str)
        or (isinstance(content, list) and all(isinstance(p, dict) and p.get("type") in STEERED_PARTS for p in parts))
    )
