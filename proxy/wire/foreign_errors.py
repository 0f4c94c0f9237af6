"""Reads errors of servers in any form, for clients that know only the protocol's envelope.

    {"error": {"message", "type", "param", "code"}}             the protocol; others have a number in `code`
    {"error": "text"}, {"error": "code", "error_description"}   Ollama, LM Studio; OAuth
    {"detail": "text"}, {"detail": [{"loc", "msg", "type"}]}    FastAPI; RFC 9457 with `title` and `status`
    {"message", "type", "code"}, {"statusCode", "message"}      vLLM, API managers
    {"fault": {"faultstring", "detail"}}, {"errors": [...]}     Apigee, Cloudflare

In a stream each of them may be the data of an event, with or without a `type`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HOLDERS = ("error", "fault", "errors", "detail")
"""The fields that have the error, the first that is not empty."""
MESSAGES = ("message", "msg", "Message", "error_description", "faultstring", "detail", "title", "error")
CODES = ("code", "errorcode", "error_code", "Code")
STATUSES = ("status", "statusCode", "status_code", "code")
MAX_DEPTH = 3
MAX_CHARS = 10_000
"""The most characters of a message that are kept."""
DEFAULT_CODE = "upstream_error"
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}", re.ASCII)
# What a status would have said, for an error that came without one.
_STATUS_OF = {
    "authentication_error": 401, "invalid_api_key": 401, "permission_error": 403, "permission_denied": 403,
    "not_found": 404, "not_found_error": 404, "notfounderror": 404, "model_not_found": 404,
    "insufficient_quota": 429, "rate_limit_error": 429, "rate_limit_exceeded": 429, "ratelimiterror": 429,
    "requests": 429, "resource_exhausted": 429, "tokens": 429, "too_many_requests": 429,
    "overloaded": 503, "overloaded_error": 503, "server_is_overloaded": 503, "service_unavailable": 503,
    "slow_down": 503,
}  # fmt: skip
_REFUSED = re.compile(
    r"(?:invalid_|unsupported_|missing_|unknown_|badrequest|context_length|content_policy|string_above_)"
)


@dataclass(frozen=True, slots=True)
class ForeignError:
    """An error as a server described it. `status` is what it gave, or what its type or code stands for; else None."""

    message: str | None
    type: str | None
    param: str | None
    code: str | None
    status: int | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the object of the error has, the fields of other names included."""

    def envelope(self, status: int, default_message: str) -> dict[str, Any]:
        """Return the object that clients of the protocol read, for an answer of this status."""
        return {
            "error": {
                **self.fields,
                "message": self.message or default_message,
                "type": self.type or ("invalid_request_error" if status < 500 else "server_error"),
                "param": self.param,
                "code": self.code or DEFAULT_CODE,
            }
        }


def is_envelope(data: object) -> bool:
    """Whether a JSON value is the protocol's envelope: it has a message, and no field has a foreign type."""
    error = data.get("error") if isinstance(data, Mapping) else None
    return (
        isinstance(error, Mapping)
        and isinstance(error.get("message"), str)
        and all(isinstance(error.get(name), str | None) for name in ("type", "param", "code"))
    )


def read_error(data: object) -> ForeignError | None:
    """Return the error that a JSON value describes; None if it describes none."""
    data = _first(data)
    if not isinstance(data, dict):
        return None
    fields, text = _flatten(data)
    message = next((fields[name] for name in MESSAGES if _is_text(fields.get(name))), text)
    if message is None and not _is_error_object(data):
        return None
    kind, code = _word(fields.get("type")), _code(fields)
    kind = None if kind == "error" else kind
    if isinstance(fields.get("loc"), list):  # FastAPI: what it calls the type says what is wrong
        kind, code = None, code or kind
    if code is None and _word(data.get("error")) and message != data["error"]:
        code = data["error"]
    status = next((found for name in STATUSES if (found := _status(fields.get(name)))), None)
    return ForeignError(
        None if message is None else message[:MAX_CHARS], kind, _param(fields), code,
        status or _status_of(code) or _status_of(kind), _own_fields(data),
    )  # fmt: skip


def _first(data: object) -> object:
    """Return the first element of a list, and anything else as it is."""
    return data[0] if isinstance(data, list) and data else data


def _flatten(data: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the fields of an error, those of the innermost object in place of outer ones, and a text in its place."""
    fields, inner = data, data
    for _ in range(MAX_DEPTH):
        found = _first(next((inner[name] for name in HOLDERS if inner.get(name)), None))
        if _is_text(found):
            return fields, str(found)
        if not isinstance(found, dict):
            break
        fields, inner = {**fields, **found}, found
    return fields, None


def _own_fields(data: dict[str, Any]) -> Mapping[str, Any]:
    error = data.get("error")
    return error if isinstance(error, dict) else {}


def _is_error_object(data: Mapping[str, Any]) -> bool:
    error = data.get("error")
    return (isinstance(error, dict) and bool(error)) or "error" in (data.get("type"), data.get("object"))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def _code(fields: Mapping[str, Any]) -> str | None:
    """Return the code as a string: typed clients fail on a number."""
    for name in CODES:
        value = fields.get(name)
        if isinstance(value, str) and value:
            return value[:128]
        if isinstance(value, int) and not isinstance(value, bool):
            return _word(fields.get("status")) or str(value)
    return None


def _param(fields: Mapping[str, Any]) -> str | None:
    """Return the field of the request that is at fault; FastAPI gives its path, which begins with "body"."""
    path = fields.get("loc")
    if isinstance(path, list):
        steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path[:32] if step != "body"]
        return "".join(steps).removeprefix(".")[:256] or None
    param = fields.get("param")
    return param if isinstance(param, str) else None


def _status(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
        value = int(value)
    return value if isinstance(value, int) and 400 <= value < 600 else None


def _status_of(word: str | None) -> int | None:
    """Return the status that a type or a code stands for; None if it stands for none."""
    known = (word or "").lower()
    return _STATUS_OF.get(known) or (400 if _REFUSED.match(known) else None)
