"""Ends a stream that does not end by itself: the events that must follow those sent so far.

Open items are closed as incomplete. A failure is then reported by the union-form `error` event and `response.failed`,
a stop by `response.incomplete`. Sequence numbers continue from the last event sent; nothing is ever reported as
completed. Every event composed here is recorded in the transcript. They repeat all items that came before, so composing
them takes as much time as work on `Transcript.response_bytes` does.
Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Mapping
from typing import Any

import orjson

from proxy.wire.errors import BackendRefusal, HeadgateError, envelope
from proxy.wire.event import Event, Reply
from proxy.wire.items import JSON
from proxy.wire.large_json import LARGE_BYTES, dumps
from proxy.wire.transcript import Transcript

# The codes that typed clients know in a response. All others are in the `error` event only. Source: openai-python.
RESPONSE_CODES = frozenset({
    "server_error", "rate_limit_exceeded", "invalid_prompt", "data_residency_mismatch", "bio_policy",
    "misalignment_policy_violation", "vector_store_timeout", "invalid_image", "invalid_image_format",
    "invalid_base64_image", "invalid_image_url", "image_too_large", "image_too_small", "image_parse_error",
    "image_content_policy_violation", "invalid_image_mode", "image_file_too_large", "unsupported_image_media_type",
    "empty_image_file", "failed_to_download_image", "image_file_not_found",
})  # fmt: skip


def failure_events(transcript: Transcript, error: HeadgateError) -> list[Event]:
    """Return the events that end a stream with a failure. An `error` event already sent is not repeated.

    Open items are closed first: some clients read nothing after an `error` event.
    """
    events = _close_items(transcript)
    if transcript.error is None:
        fields = envelope(error)["error"]
        flat = {name: fields[name] for name in ("code", "message", "param")}
        events.append(_compose(transcript, "error", **flat, error=fields))
    code = error.code if isinstance(error, BackendRefusal) and error.code in RESPONSE_CODES else "server_error"
    failed = {"status": "failed", "error": {"code": code, "message": error.message}}
    return [*events, _terminal(transcript, failed)]


def refusal_of(reply: Reply) -> BackendRefusal:
    """Return an upstream's refusal as an error, for an answer whose status was already sent."""
    try:
        error = dict(orjson.loads(reply.body or b"")["error"])
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        error, message = {}, f"The upstream refused the request with the status {reply.status}."
    retry_after = next((value for name, value in reply.headers.items() if name.lower() == "retry-after"), "1")
    code, kind, param = (
        error[name] if isinstance(error.get(name), str) else None for name in ("code", "type", "param")
    )
    refusal = BackendRefusal(
        message, status=reply.status, code=code or "upstream_error", headers={"Retry-After": retry_after}
    )
    refusal.type, refusal.param = kind or refusal.type, param
    return refusal


def incomplete_events(transcript: Transcript, reason: str) -> list[Event]:
    """Return the events that end a stream early and cleanly: open items cut short, then `response.incomplete`."""
    events = _close_items(transcript)
    return [*events, _terminal(transcript, {"status": "incomplete", "incomplete_details": {"reason": reason}})]


def incomplete_response(response: Mapping[str, Any], transcript: Transcript, reason: str) -> JSON:
    """Return a response that came as one body, cut short after the items that were passed on."""
    cut = {"status": "incomplete", "output": transcript.items, "incomplete_details": {"reason": reason}}
    return {**response, **cut, "completed_at": None}


def _close_items(transcript: Transcript) -> list[Event]:
    return [
        _compose(transcript, "response.output_item.done", output_index=index, item=item)
        for index, item in transcript.cut_open_items()
        if _is_encodable(item)
    ]


def _terminal(transcript: Transcript, state: JSON) -> Event:
    created = transcript.created.response if transcript.created is not None else {}
    items = [item for item in transcript.items if _is_encodable(item)]
    response = {"object": "response", **(created if _is_encodable(created) else {}), "output": items, **state}
    return _compose(transcript, f"response.{response['status']}", response=response)


def _is_encodable(value: object) -> bool:
    """Whether a value received can be sent again: one that is nested too deeply cannot, and the end must be sent."""
    try:
        dumps({"response": {"output": [value]}}, LARGE_BYTES)  # in pieces: it may be large
    except orjson.JSONEncodeError:
        return False
    return True


def _compose(transcript: Transcript, kind: str, **fields: Any) -> Event:
    """Return an event with the next sequence number, encoded; it is recorded in the transcript."""
    event = Event(kind, data={"type": kind, "sequence_number": transcript.next_number, **fields})
    event.encode(transcript.response_bytes)
    transcript.add([event])
    return event
