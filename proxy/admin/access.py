"""Identifies the operator behind a request, and refuses requests that a page of another site made a browser send.

Source: https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
Source: https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header
"""

import hmac
import re
from urllib.parse import urlsplit

from aiohttp import web

from proxy.admin.entrances import Entrances
from proxy.admin.problem import Problem
from proxy.admin.processes import Processes
from proxy.admin.roles import Operator
from proxy.admin.sessions import OperatorSession, Sessions
from proxy.config.admin_table import AdminTable
from proxy.http.dispatch import LOOPBACK_NAMES

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
SAFE_METHODS = frozenset({"GET", "HEAD"})
OWN_SITES = frozenset({"same-origin", "none", ""})
CSRF_HEADER, CSRF_FIELD = "X-CSRF-Token", "csrf"
BEARER = re.compile(r"Bearer +([!-~]+)", re.IGNORECASE)
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="headgate admin"'}


class Access:
    """Identifies operators."""

    def __init__(self, settings: AdminTable, processes: Processes) -> None:
        """Sessions are kept by the processes."""
        self.entrances = Entrances(settings)
        self.sessions = Sessions(self.entrances, settings.session_s, processes)
        self._is_local = settings.host in LOOPBACK
        self._url = urlsplit(settings.url)
        self.needs_sign_in = self.entrances.is_needed
        self.is_closed = not self.needs_sign_in and not self._is_local
        """Whether no operator can be recognized, so that only metrics and health are answered."""

    @property
    def is_secure(self) -> bool:
        """Whether browsers reach the listener over TLS."""
        return self._url.scheme == "https"

    @property
    def cookie_name(self) -> str:
        """Return the name of the session's cookie. Source: https://httpwg.org/specs/rfc6265.html#the-__Host-prefix."""
        return "__Host-headgate_session" if self.is_secure else "headgate_session"

    def own_address(self, request: web.BaseRequest) -> str:
        """Return the address at which a browser reached the listener."""
        if self._url.netloc:
            return f"{self._url.scheme}://{self._url.netloc}"
        return f"{request.scheme}://{request.headers.get('Host', '')}"

    def check_host(self, request: web.BaseRequest) -> None:
        """Refuse other Host names on loopback: a web page must not reach the listener by a DNS name of its own."""
        name = re.sub(r":\d*$", "", request.headers.get("Host", "")).lower()
        if self._is_local and name not in LOOPBACK_NAMES and name != (self._url.hostname or ""):
            raise Problem(421, "host_not_served", "This host is not served here.")

    def check_site(self, request: web.BaseRequest) -> None:
        """Refuse what a page of another site makes a browser send, but for links to pages."""
        headers = request.headers
        site, mode = headers.get("Sec-Fetch-Site", "").lower(), headers.get("Sec-Fetch-Mode", "").lower()
        origin = headers.get("Origin")
        is_link = request.method in SAFE_METHODS and mode == "navigate" and origin is None
        if site not in OWN_SITES and not is_link:
            raise Problem(403, "cross_site_request", "Requests of web pages from other sites are not allowed.")
        if origin is not None and not self._is_own(origin, headers.get("Host", "")):
            raise Problem(403, "cross_site_request", "The Origin of this request is another site.")

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if self._url.netloc and (parts.scheme, parts.netloc) == (self._url.scheme, self._url.netloc):
            return True
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() != ""

    async def session_of(self, request: web.BaseRequest) -> OperatorSession | None:
        """Return the session of a browser, None without one. Raises Problem, also where no sign-in is configured."""
        if self.is_closed:
            message = "No key of an operator is configured; add [[admin.key]], or listen on loopback."
            raise Problem(403, "sign_in_not_configured", message)
        if not self.needs_sign_in:
            return self.sessions.local()
        return await self.sessions.read(request.cookies.get(self.cookie_name, ""))

    async def operator_of(self, request: web.BaseRequest) -> Operator:
        """Return who sends a request to the API. Raises Problem."""
        return (await self.sender_of(request)).operator

    async def sender_of(self, request: web.BaseRequest) -> OperatorSession:
        """Return the session of who sends a request to the API; one without an id for a key. Raises Problem.

        What changes something needs the session's token, where a browser sent it: it adds the cookie by itself.
        """
        authorization = request.headers.getall("Authorization", [])
        if authorization:
            match = BEARER.fullmatch(authorization[0]) if len(authorization) == 1 else None
            entry = None if match is None else self.entrances.by_key(match[1])
            if entry is None:
                raise Problem(401, "unknown_key", "This is no key of an operator.", headers=CHALLENGE)
            return OperatorSession(entry.operator, "")
        session = await self.session_of(request)
        if session is None:
            raise Problem(401, "sign_in_needed", "Send the key of an operator as a bearer token.", headers=CHALLENGE)
        is_browser = self.needs_sign_in or "Origin" in request.headers or "Sec-Fetch-Site" in request.headers
        if request.method not in SAFE_METHODS and is_browser:
            self.check_token(session, request.headers.get(CSRF_HEADER, ""))
        return session

    @staticmethod
    def check_token(session: OperatorSession, token: str) -> None:
        """Raises Problem if a form, or a request of a script, does not have the token of its session."""
        if not hmac.compare_digest(session.csrf.encode(), token.encode(errors="surrogatepass")):
            message = "The page was made before you signed in, or by another site; load it again."
            raise Problem(403, "csrf_token_invalid", message)
