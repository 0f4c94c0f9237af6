"""What follows from the head of a request alone, by the config: it is found out once for a head that repeats."""

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

    `path` and `query` are as they were sent, without keys; `logged_path` is in ASCII. `answer_headers` are those of
    every answer to it. `traced` are its headers if the caller's trace is continued. `is_plain` is whether its body is
    JSON that is not compressed.

    `handler` is what answers it, once it was checked; None: not yet, or it is refused each time. `forwarded` are the
    headers that some backend may see, once they are asked for.
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
    """Whether the body of a request with these headers is JSON, which is not compressed."""
    return headers.get(CONTENT_TYPE) == JSON_TYPE and CONTENT_ENCODING not in headers
