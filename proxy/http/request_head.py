"""What the dispatcher derives from the head of a request: computed once for a head that repeats."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from aiohttp.hdrs import CONTENT_ENCODING, CONTENT_TYPE
from multidict import CIMultiDictProxy

if TYPE_CHECKING:
    from proxy.http.router import FoundPath

JSON_TYPE = "application/json"


class RequestHead(msgspec.Struct, eq=False):
    """The head of one request, or of several on one connection that differ in the length of the body only.

    `path` and `query` are as received, without keys; `logged_path` is in ASCII. `answer_headers` are added to every
    answer. `traced` are the request's headers if the caller's trace is continued. `is_plain`: the body is JSON without
    compression.

    `handler` is set once the head was checked; None: not checked yet, or refused each time. `forwarded` are the headers
    that some backend may see, set when they are first needed.
    """

    path: str
    query: str
    found: "FoundPath"
    logged_path: str
    client_address: str | None
    answer_headers: Mapping[str, str]
    traced: CIMultiDictProxy[str] | None
    is_plain: bool
    handler: Callable[[Any], Awaitable[web.StreamResponse]] | None = None
    forwarded: Mapping[str, str] | None = None

    def __repr__(self) -> str:  # the headers have keys
        return f"RequestHead({self.logged_path!r})"


def has_plain_json(headers: CIMultiDictProxy[str]) -> bool:
    """Whether the body of a request with these headers is JSON without compression."""
    return headers.get(CONTENT_TYPE) == JSON_TYPE and CONTENT_ENCODING not in headers
