"""The admin API as a whole: who may use which endpoint, and what it answers to what is wrong."""

import io
import re
from typing import Any

import pytest

from proxy.admin.api.dispatch import ENDPOINTS, MOST_ERRORS
from proxy.wire.query import MAX_PARAMETERS
from tests.operators import KEYS, Console, console_tables, start_console

BODIES: dict[str, Any] = {
    "create_key": {"name": "new", "team": "search"},
    "rotate_key": {},
    "revoke_key": {},
    "try_policies": {"body": {"model": "m", "input": "Hi"}},
    "compare_text": {"text": ""},
    "reload_config": {},
    "end_all_sessions": {"operator": "none"},
    "forget_entries": {"team": "search"},
    "block_identifier": {"identifier": "x"},
    "unblock_identifier": {"identifier": "x"},
    "identify": {"identifier": "x"},
    "purge_cache": {"model": "m", "team": "search"},
}
OWNER, ALL, GLOBAL, MANAGERS = {"owner"}, set(KEYS), {"owner", "viewer"}, {"owner", "search_admin"}
ALLOWED = {
    "get_me": ALL, "get_now": ALL, "stream_now": ALL, "list_requests": ALL, "get_request": ALL, "list_keys": ALL,
    "create_key": MANAGERS, "rotate_key": MANAGERS, "revoke_key": MANAGERS, "list_policies": ALL,
    "try_policies": ALL, "compare_file": GLOBAL, "compare_text": OWNER, "reload_config": OWNER, "get_cache": ALL,
    "purge_cache": MANAGERS, "list_models": ALL, "list_targets": GLOBAL, "drain_target": OWNER,
    "get_spend": ALL, "get_spend_csv": ALL, "list_budgets": ALL, "undrain_target": OWNER, "list_audit": GLOBAL, "verify_audit": GLOBAL,
    "list_sessions": OWNER, "end_all_sessions": OWNER, "list_identifiers": OWNER, "block_identifier": OWNER,
    "unblock_identifier": OWNER, "identify": OWNER, "get_usage": ALL, "forget_entries": MANAGERS, "list_entries": ALL,
}  # fmt: skip


@pytest.fixture
async def console(upstream, start_gateway, logged, http, tmp_path, monkeypatch) -> Console:
    return await start_console(start_gateway, console_tables(upstream, tmp_path, monkeypatch), logged, http)


def path_of(endpoint: Any) -> str:
    return re.sub(r"\{\w+\}", "fake" if "targets" in endpoint.path else "unknown", endpoint.path)


async def test_each_role_may_use_what_the_table_says(console: Console):
    """A new endpoint without a line in the table fails, and so does a line without one."""
    found: dict[str, set[str]] = {}
    for endpoint in ENDPOINTS:
        name = endpoint.run.__name__
        for who in KEYS:
            status, answer = await console.ask(endpoint.method, path_of(endpoint), BODIES.get(name), who)
            assert status < 500
            code = answer.get("code") if isinstance(answer, dict) else None
            assert (status == 403) == (code in ("role_not_allowed", "team_not_allowed"))
            found.setdefault(name, set()).update([who] if status != 403 else [])

    assert found == ALLOWED


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}])
async def test_a_request_without_a_key_of_an_operator_is_refused_everywhere(console: Console, headers):
    """It gets 401 and a challenge, whatever it asks for; one for an unknown path as well."""
    for endpoint in ENDPOINTS:
        status, _ = await console.ask(endpoint.method, path_of(endpoint), {}, headers=headers)
        assert status == 401
    async with console.http.get(f"{console.admin}/admin/v1/unknown", headers=headers) as answer:
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="headgate admin"')


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/unknown", None, 404, "unknown_path"),
        ("PUT", "/keys", {}, 405, "method_not_allowed"),
        ("GET", "/requests?limit=0", None, 400, "invalid_query"),
        ("GET", "/requests?misspelt=1", None, 400, "invalid_query"),
        ("GET", "/requests?id=a&id=b", None, 400, "invalid_query"),
        ("GET", "/requests?since=yesterday", None, 400, "invalid_query"),
        ("GET", "/requests?since=12.5", None, 400, "invalid_query"),
        ("GET", "/spend?by=team,team", None, 400, "invalid_by"),
        ("GET", "/spend?by=color", None, 400, "invalid_by"),
        ("GET", "/spend?since=soon", None, 400, "invalid_time"),
        ("GET", "/spend?since=2020-01-01", None, 400, "time_too_long"),
        ("GET", "/spend?since=9999-12-31T20:00&until=9999-12-31T23:30", None, 400, "invalid_time"),
        ("GET", "/spend?since=0001-01-01T00:00%2B14:00", None, 400, "invalid_time"),
        ("GET", "/requests/req_0", None, 404, "unknown_request"),
        ("POST", "/keys", {"name": "x"}, 400, "invalid_body"),
        ("POST", "/keys", {"name": "a\u202eb", "team": "t"}, 400, "invalid_body"),
        ("POST", "/keys", {"name": "a", "team": "t", "tags": {"a b": "c"}}, 400, "invalid_body"),
        ("POST", "/keys", {"name": "ada", "team": "billing"}, 409, "key_not_changed"),
        ("POST", "/keys", [], 400, "invalid_body"),
        ("POST", "/keys/key_0/revoke", {}, 404, "unknown_key"),
        ("POST", "/policies/try", {"body": {}, "caller": "unknown"}, 404, "unknown_caller"),
        ("POST", "/targets/none/drain", None, 404, "unknown_target"),
        ("POST", "/cache/purge", {}, 400, "invalid_body"),
    ],
)
async def test_what_is_wrong_is_a_problem(console: Console, method, path, body, status, code):
    """It has the members of RFC 9457, and a code for programs."""
    found, problem = await console.ask(method, path, body)

    assert (found, problem["code"], problem["status"], problem["type"]) == (status, code, status, "about:blank")
    assert problem["title"]
    assert problem["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"{", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"x" * 1_100_000, "application/json", 413),
        (b'{"name":[%b0]}' % (b"[]," * 300_000), "application/json", 413),
    ],
)
async def test_a_body_that_cannot_be_read_is_a_problem(console: Console, body, kind, code):
    """It is too large, no JSON, or said to be something else."""
    headers = {"Authorization": f"Bearer {KEYS['owner']}", "Content-Type": kind}
    async with console.http.post(f"{console.admin}/admin/v1/keys", data=io.BytesIO(body), headers=headers) as answer:
        assert (answer.status, answer.content_type) == (code, "application/problem+json")


async def test_not_all_faults_of_a_request_are_named(console: Console):
    """However many there are, the answer is short; a query has no more parameters than a call may have."""
    status, problem = await console.ask("POST", "/keys", {f"odd{number}": 1 for number in range(4_000)})
    query = "&".join(f"odd{number}=1" for number in range(MAX_PARAMETERS))
    found, few = await console.ask("GET", f"/requests?{query}")
    refused, many = await console.ask("GET", f"/requests?{query}&last=1")

    assert (status, len(problem["errors"])) == (400, MOST_ERRORS)
    assert (found, len(few["errors"]), refused, "errors" in many) == (400, MOST_ERRORS, 400, False)


async def test_the_document_describes_every_endpoint(console: Console):
    """It needs no key."""
    async with console.http.get(f"{console.admin}/admin/openapi.json") as answer:
        document = await answer.json()

    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(endpoint.method, endpoint.template) for endpoint in ENDPOINTS}
    assert document["openapi"] == "3.1.0"


async def test_no_sign_in_is_needed_on_loopback_without_keys(upstream, start_gateway, logged, http):
    """Elsewhere the API is closed, and only metrics and health are answered."""
    from tests.conftest import tables_for

    local = await start_console(start_gateway, tables_for(upstream, admin={"port": 0}), logged, http)
    status, me = await local.ask("GET", "/me", headers={})
    assert (status, me["name"], me["role"], me["team"]) == (200, "local", "owner", "")
    tables = tables_for(upstream, admin={"port": 0, "host": "0.0.0.0"})
    public = await start_console(start_gateway, tables, logged, http)
    status, problem = await public.ask("GET", "/me", headers={})

    assert (status, problem["code"]) == (403, "sign_in_not_configured")
