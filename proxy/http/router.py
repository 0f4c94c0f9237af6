"""Method and path -> handler. Paths are compared as they were sent: nothing is decoded or normalized before.

In a template `{id}` stands for an id of the protocol, `{name*}` for any rest of the path that is not empty. HEAD is
answered wherever GET is.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiohttp import web

from proxy.http.exchange import Exchange
from proxy.wire.errors import RequestError
from proxy.wire.loggable import in_ascii

Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]

ID = "[A-Za-z0-9_-]{1,256}"
VERSION = "v1"
MAX_SEGMENTS = 16
"""The most segments of a path for which a correction is suggested."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    method: str
    template: str
    handler: Handler


class FoundPath(NamedTuple):
    """The match of a path: a template (None: unknown path), its handlers by method, and its values."""

    template: str | None
    handlers: Mapping[str, Handler]
    values: Mapping[str, Any]


UNKNOWN_PATH = FoundPath(None, {}, {})


class Router:
    """Finds the endpoint of a request."""

    def __init__(self, endpoints: Iterable[Endpoint], hint: str = "") -> None:
        """`hint` is added to the answer to an unknown path."""
        self._hint_of_relays = hint
        self._exact: dict[str, FoundPath] = {}
        self._templates: list[tuple[str, re.Pattern[str], dict[str, Handler]]] = []
        by_template: dict[str, dict[str, Handler]] = {}
        for endpoint in endpoints:
            handlers = by_template.setdefault(endpoint.template, {})
            handlers[endpoint.method] = endpoint.handler
            if endpoint.method == "GET":
                handlers["HEAD"] = endpoint.handler
        for template, handlers in by_template.items():
            if "{" in template:
                self._templates.append((template, compile_template(template), handlers))
            else:
                self._exact[template] = FoundPath(template, handlers, {})

    def find(self, path: str) -> "FoundPath":
        """Return the match of a path."""
        found = self._exact.get(path)
        if found is not None:
            return found
        for template, pattern, handlers in self._templates:
            if (match := pattern.fullmatch(path)) is not None:
                return FoundPath(template, handlers, match.groupdict())
        return UNKNOWN_PATH

    def match(self, method: str, path: str) -> tuple[Handler, Mapping[str, Any]]:
        """Return the handler of a request and the values of its template. Raises RequestError: 404, 405."""
        found = self.find(path)
        return self.handler(found, method, path), found.values

    def handler(self, found: "FoundPath", method: str, path: str) -> Handler:
        """Return the handler of a method of a path that was found. Raises RequestError: 404, 405."""
        handlers = found.handlers
        if not handlers:
            message = f"Unknown request URL: {method} {in_ascii(path)}. {self._hint(path)}"
            if self._hint_of_relays:
                message = f"{message} {self._hint_of_relays}"
            raise RequestError(message, status=404)
        handler = handlers.get(method)
        if handler is None:
            allowed = ", ".join(handlers)
            message = f"{method} is not allowed at {in_ascii(path)}; allowed: {allowed}."
            raise RequestError(message, status=405, headers={"Allow": allowed})
        return handler

    def _hint(self, path: str) -> str:
        """Return a hint for an unknown path: the right one, if a wrong base URL or a trailing slash is the cause."""
        for meant in _corrections(path):
            if self.find(meant).handlers:
                return f"The path is {in_ascii(meant)}; check the client's base_url, which ends in /{VERSION}."
        return f"Responses are created by POST /{VERSION}/responses."


def _corrections(path: str) -> Iterable[str]:
    """Yield the paths that a wrong one may stand for: without empty segments, with the version once and in front."""
    segments = [segment for segment in path.split("/", MAX_SEGMENTS + 1) if segment]
    if not segments or len(segments) > MAX_SEGMENTS:
        return
    versions = [position for position, segment in enumerate(segments) if segment.lower() == VERSION]
    rest = segments[versions[-1] + 1 :] if versions else segments
    yield "/" + "/".join(segments)
    yield "/" + "/".join([VERSION, *rest])


def compile_template(template: str) -> re.Pattern[str]:
    """Return the pattern of a path template such as /v1/responses/{id} or /v1/models/{name*}."""
    pattern = ""
    for part in re.split(r"(\{\w+\*?\})", template):
        if part.endswith("*}"):
            pattern += f"(?P<{part[1:-2]}>.+)"
        elif part.endswith("}"):
            pattern += f"(?P<{part[1:-1]}>{ID})"
        else:
            pattern += re.escape(part)
    return re.compile(pattern)
