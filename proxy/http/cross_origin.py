"""Requests of web pages: which sites may send them, and the headers with which a browser lets a page read the answer.

A page that is listed in `cors_origins` still needs a key. Cookies are never read, and no answer allows credentials, so
that a page has nothing but what it was given. Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from aiohttp import web

from proxy.wire.errors import RequestError
from proxy.wire.origins import Origins

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})  # as parsed from a URL
PREFLIGHT_AGE_S = 600
MAX_ASKED_CHARS = 4096
_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?: *, *[A-Za-z0-9!#$%&'*+.^_`|~-]+)*", re.ASCII)
VARY = {"Vary": "Origin"}
"""Added to every answer if some are for one origin only: caches must not give them to another one."""


class CrossOrigin:
    """Decides which pages may send requests, and the headers of their answers."""

    def __init__(self, listed: Iterable[str] = ()) -> None:
        origins = [*listed]
        self._origins = Origins(origins)
        self.is_used = bool(origins)
        """Whether any origin is listed."""

    def headers(self, request: web.BaseRequest) -> Mapping[str, str]:
        """Return the headers of an answer; with `*` a page without credentials can read all of them."""
        origin = request.headers.get("Origin")
        if origin is None or not self._origins.allow(origin):
            return VARY
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "*", **VARY}

    def is_preflight(self, request: web.BaseRequest) -> bool:
        """Return whether a request is a browser's preflight, which has no key."""
        headers = request.headers
        return (
            request.method == "OPTIONS"
            and "Access-Control-Request-Method" in headers
            and self._origins.allow(headers.get("Origin", ""))
        )

    @staticmethod
    def preflight_headers(request: web.BaseRequest, methods: str) -> Mapping[str, str]:
        """Return the headers that allow the announced request: any header, and the methods of the path."""
        asked = request.headers.get("Access-Control-Request-Headers", "")
        headers = {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Max-Age": str(PREFLIGHT_AGE_S),
            "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        }
        if len(asked) <= MAX_ASKED_CHARS and _NAMES.fullmatch(asked):
            headers["Access-Control-Allow-Headers"] = asked
        return headers

    def check_site(self, request: web.BaseRequest) -> None:
        """Refuse what a page of another site sends to a gateway without callers, which answers without a key.

        Source: https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header
        """
        origin = request.headers.get("Origin")
        if origin is not None and self._origins.allow(origin):
            return
        is_foreign = request.headers.get("Sec-Fetch-Site", "").strip().lower() == "cross-site"
        if is_foreign or (origin is not None and not _is_loopback(origin)):
            raise _refusal("Requests of web pages from other sites are not allowed without callers.")

    def check_upgrade(self, request: web.BaseRequest) -> None:
        """Refuse a WebSocket of a page that is not listed: browsers send no preflight for one."""
        origin = request.headers.get("Origin")
        if "Upgrade" in request.headers and origin is not None and not self._origins.allow(origin):
            raise _refusal("WebSockets of web pages from other sites are not allowed.")


def _refusal(message: str) -> RequestError:
    message += " The operator of this gateway can list their origin: cors_origins."
    return RequestError(message, status=403, code="cross_site_request")


def _is_loopback(origin: str) -> bool:
    try:
        return urlsplit(origin).hostname in LOOPBACK_HOSTS
    except ValueError:
        return False
