"""Turns errors into HTTP answers, in one place."""

from collections.abc import Mapping

import orjson
from aiohttp import web

from proxy.http.send import BODY_HEADERS
from proxy.wire.errors import HeadgateError, RequestError, envelope


class FramingError(RequestError):
    """The end of the request is ambiguous: its connection is closed, so that no rest is read as another request."""


def error_response(error: HeadgateError, headers: Mapping[str, str]) -> web.Response:
    """Return an error in the envelope that every client of the protocol reads."""
    own = {**BODY_HEADERS, **headers, **error.headers}
    if error.retry is not None:
        own["x-should-retry"] = "true" if error.retry else "false"
    return web.Response(status=error.status, headers=own, body=_encode(error))


def _encode(error: HeadgateError) -> bytes:
    """The envelope as JSON; a message with bytes of a header that are not UTF-8 is escaped."""
    try:
        return orjson.dumps(envelope(error))
    except orjson.JSONEncodeError:
        error.message = error.message.encode("ascii", "backslashreplace").decode()
        return orjson.dumps(envelope(error))
