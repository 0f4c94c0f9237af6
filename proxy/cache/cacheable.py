"""What may be cached: which calls are looked up, and which answers are kept."""

from collections.abc import Mapping
from typing import Any

from policies.support.tools import offers_server_tools
from proxy.config.schema import CacheWhen
from proxy.wire.call import Call
from proxy.wire.event import Reply


def reason_to_bypass(call: Call, when: CacheWhen) -> str | None:
    """Return why a call is never answered from the cache, as a word for `Cache-Status`; None if it may be."""
    body = call.body
    if call.operation != "create":
        return call.operation
    if when == "never":
        return "route"
    if when == "prompt_cache_key" and not isinstance(body.get("prompt_cache_key"), str):
        return "no-prompt-cache-key"
    if when == "deterministic" and not is_deterministic(body):
        return "not-deterministic"
    if body.get("background"):
        return "background"
    return "conversation" if body.get("conversation") is not None else None


def runs_tools(call: Call) -> str | None:
    """Return why the answer to a call may come of tools that the server runs; None if it cannot.

    A prompt template may have tools that the gateway does not see.
    """
    if call.body.get("prompt") is not None:
        return "prompt"
    return "tools" if call.fact(offers_server_tools) else None


def is_deterministic(body: Mapping[str, Any]) -> bool:
    """Whether a call asks for the likeliest answer, which it would get again."""
    temperature = body.get("temperature")
    return not isinstance(temperature, bool) and isinstance(temperature, int | float) and temperature == 0


def reason_not_to_keep(response: Mapping[str, Any]) -> str | None:
    """Return why an answer is not given again: it is not complete, empty, or a refusal. None if it may be."""
    output = response.get("output")
    if response.get("status") != "completed" or response.get("incomplete_details") is not None:
        return "incomplete"
    if not isinstance(output, list):
        return "empty"
    says_something = False
    for item in output:
        if not isinstance(item, dict):
            continue
        if item.get("status") == "incomplete":
            return "incomplete"
        kind, content = item.get("type"), item.get("content")
        parts = content if isinstance(content, list) else []
        for part in parts:
            if not isinstance(part, dict):
                continue
            if part.get("type") == "refusal":
                return "refusal"
            says_something |= kind == "message" and bool(part.get("text", True))
        says_something |= kind not in ("message", "reasoning")
    return None if says_something else "empty"


def may_be_shared(reply: Reply) -> bool:
    """Whether a reply answers identical calls too, as far as is known when it begins: if a body, one that is kept."""
    if reply.status != 200:
        return False
    return reply.batches is not None or reason_not_to_keep(reply.response or {}) is None
