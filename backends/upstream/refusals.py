"""Refusals of upstreams: one in the protocol's envelope passes unchanged, of any other form its reason is kept."""

from collections.abc import Mapping
from typing import Any

import orjson

from backends.upstream.errors import invalid_answer
from proxy.wire.bounds import has_more_values
from proxy.wire.event import Reply
from proxy.wire.foreign_errors import ForeignError, is_envelope, read_error
from proxy.wire.large_json import loads_leniently
from proxy.wire.stream_errors import key_refused

MAX_REFUSAL_VALUES = 10_000
MAX_REFUSAL_BYTES = 1_048_576
"""The largest refusal that is read, in bytes."""
NOTHING_KNOWN = ForeignError(None, None, None, None, None)


def refusal_of_body(
    status: int, headers: Mapping[str, str], body: bytes, content_type: str, *, is_relayed: bool = False
) -> Reply:
    """Return the reply to a call that was refused. The status stays; `content_type` is shown where nothing is known.

    Of a relayed path every error that is an object passes as it is.

    Raises BackendError for statuses that concern the gateway alone.
    """
    check_status(status)
    found = _value_of(body)
    if not (is_envelope(found) or (is_relayed and isinstance(found, dict) and isinstance(found.get("error"), dict))):
        default = f"The upstream answered {status} with {content_type}."
        body = orjson.dumps((read_error(found) or NOTHING_KNOWN).envelope(status, default))
    return Reply(status, headers, body=body)


def refusal_in_success(response: Mapping[str, Any], headers: Mapping[str, str], *, has_id: bool) -> Reply | None:
    """Return the refusal that came with a status of success; None for what is none.

    A response that failed is no refusal: it has an id, and says itself what happened.
    """
    is_whole = "id" in response and ("output" in response or not response.get("error"))
    if is_whole or not (has_id or response.get("error") or response.get("object") == "error"):
        return None
    error = read_error(response)
    if error is None:
        return None
    status = error.status or 502
    check_status(status)
    return Reply(status, headers, body=orjson.dumps(error.envelope(status, "The upstream failed.")))


def check_status(status: int) -> None:
    """Raises BackendError for the status of an answer that no caller receives."""
    if status == 401:
        raise key_refused()
    if not 400 <= status < 600:  # redirects are not followed: the prompt would go to another address
        raise invalid_answer(f"status {status}")


def names_missing_endpoint(reply: Reply) -> bool:
    """Whether a refusal says that the server has no such path, rather than that something it looked for is missing.

    A server of the protocol names what it looked for in a code, a param or the message ("Item with id ... not found.");
    a router of a web framework does not.
    """
    if reply.status != 404:
        return reply.status == 405
    error = orjson.loads(reply.body or b"{}").get("error", {})
    has_reason = isinstance(error.get("param"), str) or " id " in str(error.get("message"))
    return not has_reason and error.get("code") in (None, 404, "404", "upstream_error")


def _value_of(body: bytes) -> Any:
    """Return the JSON value of a refusal; None if it is too large or not JSON."""
    if len(body) > MAX_REFUSAL_BYTES or has_more_values(body, MAX_REFUSAL_VALUES):
        return None
    try:
        return loads_leniently(body)
    except ValueError:
        return None
