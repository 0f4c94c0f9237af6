"""What the forms of the console do: each by an endpoint of the admin API, as a program would."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.admin.api import cache, config, keys, policies, sessions, targets
from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest
from proxy.admin.console.pages import Values, show_config, show_keys, with_body
from proxy.admin.problem import Problem

DAY_S = 86_400.0
NOTICES = {
    "revoked": "The key is revoked: it is refused from now on.",
    "drained": "The target gets no new calls.",
    "restored": "The target gets calls again.",
    "reloaded": "The config is served as its file is now.",
    "ended": "The sessions are ended.",
    "purged": "The entries are removed.",
}
"""What a page says after a form has led back to it, by a word in its address."""

Fields = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a form led to: its page with these values; without values the page is reloaded, with a notice."""

    values: Values | None = None
    notice: str = ""


Submit = Callable[[AdminRequest, Fields], Awaitable[Shown]]


def _endpoint(endpoints: tuple[AdminEndpoint, ...], method: str, path: str) -> AdminEndpoint:
    return next(each for each in endpoints if (each.method, each.path) == (method, path))


async def _use(
    request: AdminRequest, endpoints: tuple[AdminEndpoint, ...], method: str, path: str,
    body: Mapping[str, Any] | None = None, **values: str,
) -> Any:  # fmt: skip
    endpoint = _endpoint(endpoints, method, path)
    return await endpoint.run(with_body(request, endpoint, body or {}, **values))


async def submit_key(request: AdminRequest, fields: Fields) -> Shown:
    """Create, rotate or revoke a key; a new secret is shown by this answer only."""
    made, action, key_id = None, fields.get("action"), fields.get("id", "")
    if action == "create":
        order: dict[str, Any] = {
            "name": fields.get("name", ""),
            "team": fields.get("team", "") or request.operator.team,
        }
        order |= {"expires_in_s": _days(fields.get("days", "")), "models": fields.get("models", "").split()}
        made = await _use(request, keys.ENDPOINTS, "POST", "/keys", order | {"tags": _tags(fields.get("tags", ""))})
    elif action == "rotate":
        overlap = {"overlap_s": (_days(fields.get("overlap", "0")) or 0.0) / 24}
        made = await _use(request, keys.ENDPOINTS, "POST", "/keys/{id}/rotate", overlap, id=key_id)
    else:
        await _use(request, keys.ENDPOINTS, "POST", "/keys/{id}/revoke", id=key_id)
        return Shown(notice="revoked")
    return Shown({**await show_keys(request), "made": made})


def _days(text: str) -> float | None:
    """Return a number of days in seconds, None for an empty field. Raises Problem."""
    if not text.strip():
        return None
    try:
        return float(text) * DAY_S
    except ValueError as error:
        raise Problem(400, "invalid_body", "The time is no number.") from error


def _tags(text: str) -> dict[str, str]:
    """Return the tags that a field has: NAME=VALUE, with spaces between."""
    return {name: value for name, _, value in (pair.partition("=") for pair in text.split())}


async def submit_trial(request: AdminRequest, fields: Fields) -> Shown:
    """Try a request; the form keeps what was typed."""
    text, caller = fields.get("body", ""), fields.get("caller", "")
    values: dict[str, Any] = {"body": text, "caller": caller, "report": None, "fault": None}
    try:
        tried = {"body": orjson.loads(text), "caller": caller}
        values["report"] = await _use(request, policies.ENDPOINTS, "POST", "/policies/try", tried)
    except orjson.JSONDecodeError as error:
        values["fault"] = f"The body is not JSON: {error}"
    except Problem as problem:
        values["fault"] = " ".join([problem.detail, *problem.errors])
    return Shown(values)


async def submit_config(request: AdminRequest, fields: Fields) -> Shown:
    """Compare a text with the config, or serve its file."""
    if fields.get("action") == "reload":
        await _use(request, config.ENDPOINTS, "POST", "/config/reload")
        return Shown(notice="reloaded")
    text = fields.get("text", "")
    compared = await _use(request, config.ENDPOINTS, "POST", "/config/changes", {"text": text})
    return Shown({**await show_config(request), "text": text, "compared": compared})


async def submit_cache(request: AdminRequest, fields: Fields) -> Shown:
    """Remove entries of the cache."""
    named = {name: fields[name] for name in ("team", "model", "prompt_cache_key") if fields.get(name)}
    await _use(request, cache.ENDPOINTS, "POST", "/cache/purge", named)
    return Shown(notice="purged")


async def submit_target(request: AdminRequest, fields: Fields) -> Shown:
    """Drain a target, or send it calls again."""
    is_drain = fields.get("action") == "drain"
    method = "POST" if is_drain else "DELETE"
    await _use(request, targets.ENDPOINTS, method, "/targets/{name}/drain", name=fields.get("name", ""))
    return Shown(notice="drained" if is_drain else "restored")


async def submit_operator(request: AdminRequest, fields: Fields) -> Shown:
    """End all sessions of an operator."""
    named = {"operator": fields.get("operator", "")}
    await _use(request, sessions.ENDPOINTS, "POST", "/sessions/end", named)
    return Shown(notice="ended")


FORMS: Mapping[str, Submit] = {
    "/admin/keys": submit_key,
    "/admin/try": submit_trial,
    "/admin/config": submit_config,
    "/admin/cache": submit_cache,
    "/admin/targets": submit_target,
    "/admin/operators": submit_operator,
}
"""By the path of their page."""
