"""The ways into the console: the key of an operator, or an issuer."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

import structlog
from aiohttp import web

from proxy.admin.access import SAFE_METHODS, Access
from proxy.admin.api.dispatch import read_body
from proxy.admin.audit_files import AuditFiles
from proxy.admin.console.render import page, redirect
from proxy.admin.entrances import SignedIn
from proxy.admin.oidc import CALLBACK, FLOW_S, OidcSignIn
from proxy.admin.problem import Problem
from proxy.admin.sessions import OperatorSession

log = structlog.get_logger()

ROOT, SIGN_IN, BEGIN = "/admin/", "/admin/sign-in", "/admin/oidc/begin"
FORM_TYPE = "application/x-www-form-urlencoded"
FLOW_COOKIE = "headgate_sign_in"
MOST_FIELDS = 64
OWN_PATH = re.compile(r"/admin/[A-Za-z0-9_./?=&%:+~,;@!*()$-]*")
"""Where a sign-in may lead to: no other site can be written so."""
OUTSIDE: Mapping[str, Any] = {
    "path": "", "operator": None, "menu": [], "csrf": "", "notice": None, "problem": None, "signs_in": True,
}  # fmt: skip
"""What pages show to browsers that are not signed in."""


class SignInPages:
    """Opens and closes sessions, and writes both to the audit."""

    def __init__(self, access: Access, audit: AuditFiles, oidc: OidcSignIn | None) -> None:
        self._access = access
        self._audit = audit
        self._oidc = oidc
        self.paths = frozenset({SIGN_IN} if oidc is None else {SIGN_IN, BEGIN, CALLBACK})

    async def answer(self, request: web.BaseRequest, session: OperatorSession | None) -> web.Response:
        """Return a page, or lead to another one. Raises Problem."""
        query = dict(parse_qsl(request.raw_path.partition("?")[2]))
        goal = query.get("next", ROOT)
        goal = goal if OWN_PATH.fullmatch(goal) else ROOT
        if self._oidc is not None and request.path == CALLBACK and request.method in SAFE_METHODS:
            return await self._finish(self._oidc, request, query)
        if session is not None:
            return redirect(goal)
        if self._oidc is not None and request.path == BEGIN and request.method in SAFE_METHODS:
            return await self._begin(self._oidc, request, goal)
        if request.path != SIGN_IN:
            raise Problem(405, "method_not_allowed", "There is no form here.")
        return await self._with_key(request, goal)

    async def _with_key(self, request: web.BaseRequest, goal: str) -> web.Response:
        """Show the form, or open a session for a key."""
        values = {
            **OUTSIDE, "title": "Sign in", "next": quote(goal, safe="/"), "fault": None,
            "issuer": None if self._oidc is None else self._oidc.name, "has_keys": self._access.entrances.has_keys,
        }  # fmt: skip
        if request.method in SAFE_METHODS:
            return page("sign_in.html", values)
        entry = self._access.entrances.by_key((await fields_of(request)).get("key", "").strip())
        if entry is None:
            log.warning("admin.sign_in_failed", reason="unknown key")
            return page("sign_in.html", values | {"fault": "This is no key of an operator."}, 401)
        return redirect(goal, await self._open(entry, "key"))

    async def _begin(self, oidc: OidcSignIn, request: web.BaseRequest, goal: str) -> web.Response:
        redirection = await oidc.begin(self._access.own_address(request), goal)
        return redirect(redirection.address, self._flow_cookie(redirection.cookie, round(FLOW_S)))

    async def _finish(self, oidc: OidcSignIn, request: web.BaseRequest, query: Mapping[str, str]) -> web.Response:
        """Open a session. The page loads the next one: browsers keep the cookie out of what the issuer leads to."""
        entry, goal = await oidc.finish(query, request.cookies.get(self._flow_name, ""))
        goal = goal if OWN_PATH.fullmatch(goal) else ROOT
        cookie = await self._open(entry, oidc.name)
        response = page("again.html", {**OUTSIDE, "title": "Headgate", "again": goal})
        response.headers.add("Set-Cookie", cookie)
        response.headers.add("Set-Cookie", self._flow_cookie("", 0))
        return response

    @property
    def _flow_name(self) -> str:
        """Return the name of a sign-in's cookie: by TLS one that no neighbour of the host's domain can set."""
        return f"__Host-{FLOW_COOKIE}" if self._access.is_secure else FLOW_COOKIE

    def _flow_cookie(self, value: str, max_age_s: int) -> str:
        """Return the header that sets it. Lax: the issuer's redirection brings it back."""
        path = "/" if self._access.is_secure else CALLBACK
        return f"{self._flow_name}={value}; Path={path}; Max-Age={max_age_s}; HttpOnly; SameSite=Lax{self._secure}"

    @property
    def _secure(self) -> str:
        return "; Secure" if self._access.is_secure else ""

    async def _open(self, entry: SignedIn, by: str) -> str:
        """Return the header that sets the cookie of a new session: one that the browser has brought is never used."""
        await self._audit.record(entry.operator, "operator.signed_in", by=by)
        sessions = self._access.sessions
        return self._cookie(await sessions.open(entry), round(sessions.lifetime_s))

    async def sign_out(self, session: OperatorSession) -> web.Response:
        """End a session, at every gateway, and lead to the sign-in. Raises Problem."""
        await self._access.sessions.close(session)
        await self._audit.record(session.operator, "operator.signed_out")
        return redirect(SIGN_IN, self._cookie("", 0))

    def _cookie(self, value: str, max_age_s: int) -> str:
        """Return the header that sets the session's cookie. Source: https://httpwg.org/specs/rfc6265.html.

        Other servers of a host get its cookies as well, whatever their port: by the path only for paths like these.
        """
        name, path = self._access.cookie_name, "/" if self._access.is_secure else "/admin"
        return f"{name}={value}; Path={path}; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{self._secure}"


async def fields_of(request: web.BaseRequest) -> Mapping[str, str]:
    """Return the fields of a form. Raises Problem."""
    if request.content_type != FORM_TYPE:
        raise Problem(415, "not_a_form", f"A form is sent as {FORM_TYPE}.")
    text = (await read_body(request)).decode(errors="replace")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=MOST_FIELDS))
    except ValueError as error:
        raise Problem(400, "invalid_form", f"A form has at most {MOST_FIELDS} fields.") from error
