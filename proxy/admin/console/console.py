"""One request to the console: a page, a form, or the way in."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from aiohttp import web

from proxy.admin.access import CSRF_FIELD, SAFE_METHODS, Access
from proxy.admin.api.endpoint import AdminRequest
from proxy.admin.console.forms import FORMS, NOTICES
from proxy.admin.console.live import drawn_events
from proxy.admin.console.pages import PAGES, ConsolePage, Values, filter_of
from proxy.admin.console.render import HEADERS, page, redirect, static
from proxy.admin.console.sign_in import ROOT, SIGN_IN, SignInPages, fields_of
from proxy.admin.followers import Followers
from proxy.admin.oidc import OidcSignIn
from proxy.admin.problem import Problem
from proxy.admin.roles import MANAGERS, OWNERS
from proxy.admin.services import Services
from proxy.admin.sessions import OperatorSession
from proxy.wire.key_patterns import redact_keys

SIGN_OUT, LIVE = "/admin/sign-out", "/admin/live"
STATIC = "/admin/static/"


class AdminConsole:
    """Answers browsers."""

    def __init__(self, access: Access, services: Services, followers: Followers, oidc: OidcSignIn | None) -> None:
        self._access = access
        self._services = services
        self._followers = followers
        self._doors = SignInPages(access, services.audit, oidc)

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path is one of the console."""
        return path in ("/", "/admin") or path.startswith("/admin/")

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return a page for a request; a problem is one too."""
        session = None
        try:
            if request.path.startswith(STATIC) and request.method in SAFE_METHODS:
                return static(request.path.removeprefix(STATIC)) or _unknown()
            self._access.check_site(request)
            if request.path in ("/", "/admin"):
                return redirect(ROOT)
            session = await self._access.session_of(request)
            if request.path in self._doors.paths:
                return await self._doors.answer(request, session)
            if session is None:
                return self._way_in(request)
            return await self._answer_operator(request, session)
        except Problem as problem:
            return self.show_problem(problem, session)

    def show_problem(self, problem: Problem, session: OperatorSession | None = None) -> web.Response:
        """Return a page that says what is wrong."""
        values = self._frame(None, session) | {"problem": problem.as_json()}
        response = page("problem.html", values, problem.status)
        response.headers.update(problem.headers)
        return response

    async def _answer_operator(self, request: web.BaseRequest, session: OperatorSession) -> web.StreamResponse:
        if request.path == LIVE:
            events = drawn_events(self._services, session.operator.team)
            may_see = partial(self._access.sessions.is_open, session)
            return await self._followers.send(request, events, HEADERS, session.operator, may_see)
        fields = dict(parse_qsl(request.raw_path.partition("?")[2], keep_blank_values=True, errors="replace"))
        notice = NOTICES.get(fields.pop("notice", ""))
        if request.method not in SAFE_METHODS:
            return await self._submit(request, session)
        found, values = _page_of(request.raw_path.partition("?")[0])
        asked = self._asked(session, found, values)
        asked = replace(asked, query=filter_of(found.query, fields))
        return self._show(found, session, await found.read(asked), notice=notice)

    def _asked(self, session: OperatorSession, found: ConsolePage, values: Mapping[str, str]) -> AdminRequest:
        session.operator.check(found.roles, is_global=found.is_global)
        return AdminRequest(session.operator, self._services, values=values)

    async def _submit(self, request: web.BaseRequest, session: OperatorSession) -> web.StreamResponse:
        """Do what a form says. What it cannot do is on its page."""
        fields = await fields_of(request)
        self._access.check_token(session, fields.get(CSRF_FIELD, ""))
        if request.path == SIGN_OUT:
            return await self._doors.sign_out(session)
        submit = FORMS.get(request.path)
        if request.method != "POST" or submit is None:
            raise Problem(405, "method_not_allowed", "There is no form here.")
        found, values = _page_of(request.path)
        asked = self._asked(session, found, values)
        try:
            shown = await submit(asked, fields)
        except Problem as problem:
            if problem.status == 403:
                raise
            kept = await found.read(replace(asked, query=found.query()))
            return self._show(found, session, kept, problem=problem)
        if shown.values is None:
            return redirect(f"{found.path}?notice={shown.notice}")
        return self._show(found, session, shown.values)

    def _show(
        self, found: ConsolePage, session: OperatorSession, values: Values, *, notice: str | None = None,
        problem: Problem | None = None,
    ) -> web.Response:  # fmt: skip
        frame = self._frame(found, session) | {"notice": notice}
        frame["problem"] = None if problem is None else problem.as_json()
        return page(found.template, {**frame, **values}, 200 if problem is None else problem.status)

    def _frame(self, found: ConsolePage | None, session: OperatorSession | None) -> dict[str, Any]:
        """Return what every page shows."""
        operator = None if session is None else session.operator
        menu = [] if operator is None else [each for each in PAGES if each.in_menu and each.is_for(operator)]
        return {
            "title": "Headgate" if found is None else found.title, "path": "" if found is None else found.path,
            "operator": operator, "menu": menu, "csrf": "" if session is None else session.csrf, "notice": None,
            "problem": None, "signs_in": self._access.needs_sign_in,
            "is_owner": operator is not None and operator.role in OWNERS,
            "is_manager": operator is not None and operator.role in MANAGERS,
        }  # fmt: skip

    def _way_in(self, request: web.BaseRequest) -> web.Response:
        """Lead a browser without a session to the sign-in.

        Browsers leave the cookie out where a link of another site led here: then the page loads itself once more.
        """
        if request.method not in SAFE_METHODS:
            raise Problem(401, "sign_in_needed", "You are not signed in any more.")
        if request.headers.get("Sec-Fetch-Site", "").lower() in ("cross-site", "same-site"):
            return page("again.html", self._frame(None, None) | {"title": "Headgate", "again": request.raw_path})
        return redirect(f"{SIGN_IN}?next={quote(redact_keys(request.raw_path), safe='')}")


def _page_of(path: str) -> tuple[ConsolePage, Mapping[str, str]]:
    """Return the page at a path, and the id in it. Raises Problem."""
    exact = next((each for each in PAGES if each.path == path), None)
    if exact is not None:
        return exact, {}
    above, _, last = path.rpartition("/")
    below = next((each for each in PAGES if each.path == f"{above}/{{id}}"), None)
    if below is None or not last:
        raise Problem(404, "unknown_page", "There is no such page.")
    return below, {"id": unquote(last)}


def _unknown() -> web.Response:
    raise Problem(404, "unknown_page", "There is no such page.")
