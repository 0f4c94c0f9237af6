"""Methods of requests in the words of OpenTelemetry.

Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from collections.abc import Mapping

from proxy.wire.loggable import printable

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
OTHER_METHOD = "_OTHER"
SOCKET = "WEBSOCKET"
"""In a record: the request is a message of WebSocket mode and has no method."""
LONGEST_CHARS = 64


def known_method(method: str) -> str:
    """Return a method, or what stands for all others."""
    return method if method in METHODS else OTHER_METHOD


def request_name(method: str, route: str | None = None) -> str:
    """Return the name of a span: of few different ones, so without ids."""
    shown = method if method in METHODS or method == SOCKET else "HTTP"
    return shown if route is None else f"{shown} {route}"


def method_attributes(method: str) -> Mapping[str, str]:
    """Return the attributes of a span that name the method."""
    if method == SOCKET:
        return {"network.protocol.name": "websocket"}
    if method in METHODS:
        return {"http.request.method": method}
    return {
        "http.request.method": OTHER_METHOD,
        "http.request.method_original": printable(method, LONGEST_CHARS),
    }
