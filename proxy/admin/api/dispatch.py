"""One request to the admin API: who sends it, what it asks for, and the answer, or a problem."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import cached_property, partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import orjson
from aiohttp import web
from pydantic import ValidationError

from proxy.admin.access import Access
from proxy.admin.api import (
    audit,
    cache,
    config,
    identifiers,
    keys,
    me,
    models,
    now,
    openapi,
    policies,
    requests,
    sessions,
    spend,
    targets,
    usage,
)
from proxy.admin.api.endpoint import VERSION, AdminEndpoint, AdminRequest, Parameters
from proxy.admin.followers import Followers
from proxy.admin.problem import PROBLEM_TYPE, Problem
from proxy.admin.services import Services
from proxy.wire.bounds import has_more_values
from proxy.wire.query import MAX_PARAMETERS

ENDPOINTS: tuple[AdminEndpoint, ...] = (
    *me.ENDPOINTS, *now.ENDPOINTS, *requests.ENDPOINTS, *spend.ENDPOINTS, *keys.ENDPOINTS, *policies.ENDPOINTS,
    *config.ENDPOINTS, *cache.ENDPOINTS, *models.ENDPOINTS, *targets.ENDPOINTS, *audit.ENDPOINTS, *sessions.ENDPOINTS,
    *identifiers.ENDPOINTS, *usage.ENDPOINTS,
)  # fmt: skip
OPENAPI_PATH = "/admin/openapi.json"
HEADERS = {"Server": "headgate", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
BODY_TIMEOUT_S = 10.0
MAX_SEGMENT_CHARS = 256
MAX_VALUES = 10_000
"""How many JSON values a body may have: it is parsed in the event loop's thread, which may be the one of all calls."""
MOST_ERRORS = 20
"""How many faults of a request are named."""
P = TypeVar("P", bound=Parameters)


class AdminApi:
    """Answers the paths below VERSION, and the document that describes them."""

    def __init__(self, access: Access, services: Services, followers: Followers | None = None) -> None:
        self._access = access
        self._services = services
        self._followers = followers or Followers()

    @cached_property
    def _document(self) -> bytes:
        return orjson.dumps(openapi.describe(ENDPOINTS))

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path is one of the API."""
        return path in (OPENAPI_PATH, VERSION) or path.startswith(f"{VERSION}/")

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return the answer to a request. Raises Problem."""
        if request.path == OPENAPI_PATH:
            if request.method not in ("GET", "HEAD"):
                raise Problem(405, "method_not_allowed", "Only GET is allowed.", headers={"Allow": "GET, HEAD"})
            return web.Response(body=self._document, headers={**HEADERS, "Content-Type": "application/json"})
        self._access.check_site(request)
        sender = await self._access.sender_of(request)
        operator = sender.operator
        endpoint, values = find(request.method, request.raw_path.partition("?")[0])
        operator.check(endpoint.roles, is_global=endpoint.is_global)
        query = _query_of(endpoint, request.raw_path.partition("?")[2])
        body = (
            None if endpoint.body is None else validated(endpoint.body, await _json_of(request), "body", is_strict=True)
        )
        answer = await endpoint.run(AdminRequest(operator, self._services, query, body, values))
        if isinstance(answer, AsyncIterator):
            may_see = partial(self._access.sessions.is_open, sender)
            return await self._followers.send(request, answer, HEADERS, operator, may_see)
        if isinstance(answer, str):
            return web.Response(text=answer, content_type=endpoint.media, charset="utf-8", headers=HEADERS)
        return json_response(answer, endpoint.status)


def find(method: str, path: str) -> tuple[AdminEndpoint, Mapping[str, str]]:
    """Return the endpoint of a request and the values in its path. Raises Problem: 404, 405."""
    segments = [unquote(segment) for segment in path.split("/")]
    allowed = []
    for endpoint in ENDPOINTS:
        values = _values(endpoint.template.split("/"), segments)
        if values is not None and endpoint.method == ("GET" if method == "HEAD" else method):
            return endpoint, values
        if values is not None:
            allowed.append(endpoint.method)
    if allowed:
        message = f"{', '.join(allowed)} is allowed here."
        raise Problem(405, "method_not_allowed", message, headers={"Allow": ", ".join(allowed)})
    raise Problem(404, "unknown_path", f"There is no such path; {OPENAPI_PATH} describes all.")


def _values(template: list[str], segments: list[str]) -> Mapping[str, str] | None:
    """Return the values of a template's names in the segments of a path; None for a path that it does not match."""
    if len(template) != len(segments):
        return None
    values = {}
    for part, segment in zip(template, segments, strict=True):
        if part.startswith("{") and 0 < len(segment) <= MAX_SEGMENT_CHARS:
            values[part[1:-1]] = segment
        elif part != segment:
            return None
    return values


def _query_of(endpoint: AdminEndpoint, query: str) -> Parameters:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="replace", max_num_fields=MAX_PARAMETERS)
    except ValueError as error:
        raise Problem(400, "invalid_query", f"There are more than {MAX_PARAMETERS} parameters.") from error
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Problem(400, "invalid_query", "A parameter occurs more than once.")
    return validated(endpoint.query, fields, "query")


def validated(kind: type[P], fields: Any, where: str, *, is_strict: bool = False) -> P:
    """Return fields as parameters of a kind: with `is_strict` of its types only, else texts too. Raises Problem."""
    try:
        return kind.model_validate(fields, strict=is_strict)
    except ValidationError as error:
        named = error.errors(include_url=False, include_context=False, include_input=False)[:MOST_ERRORS]
        errors = [f"{'.'.join(map(str, each['loc'])) or where}: {each['msg']}" for each in named]
        raise Problem(400, f"invalid_{where}", f"The {where} is not valid.", errors) from error


async def _json_of(request: web.BaseRequest) -> Any:
    """Return the body of a request. Raises Problem for what is not JSON in UTF-8."""
    if request.content_type != "application/json":
        raise Problem(415, "not_json", "The body must be JSON, with the Content-Type application/json.")
    body = await read_body(request)
    if has_more_values(body, MAX_VALUES):
        raise Problem(413, "too_many_values", f"The body has more than {MAX_VALUES} values.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "invalid_json", "The body is not JSON.") from error


async def read_body(request: web.BaseRequest) -> bytes:
    """Return the body of a request. Raises Problem for one that is too large, or too slow."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "encoded_body", "The body must not be compressed.")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise Problem(413, "body_too_large", "The body is too large.") from error
    except TimeoutError as error:
        raise Problem(408, "body_too_slow", "The body took too long to arrive.") from error


def json_response(answer: Any, status: int = 200) -> web.Response:
    """Return an answer of the API."""
    return web.Response(
        body=orjson.dumps(answer), status=status, headers={**HEADERS, "Content-Type": "application/json"}
    )


def problem_response(problem: Problem) -> web.Response:
    """Return a problem as an answer."""
    headers = {**HEADERS, **problem.headers, "Content-Type": PROBLEM_TYPE}
    return web.Response(body=orjson.dumps(problem.as_json()), status=problem.status, headers=headers)
