"""What may be cached: which calls are looked up, and which answers are kept."""

from collections.abc import Iterator, Mapping
from typing import Any

from policies.support.tools import has_server_tools
from proxy.config.schema import CacheWhen
from proxy.wire.call import Call


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
    return "tools" if has_server_tools(call.body) else None


def is_deterministic(body: Mapping[str, Any]) -> bool:
    """Whether a call asks for the likeliest answer, which it would get again."""
    temperature = body.get("temperature")
    return not isinstance(temperature, bool) and isinstance(temperature, int | float) and temperature == 0


def reason_not_to_keep(response: Mapping[str, Any]) -> str | None:
    """Return why an answer is not given again: it is not complete, empty, or a refusal. None if it may be."""
    output = response.get("output")
    if response.get("status") != "completed" or response.get("incomplete_details") is not None:
        return "incomplete"
    if not isinstance(output, list) or not output:
        return "empty"
    if any(isinstance(item, dict) and item.get("status") == "incomplete" for item in output):
        return "incomplete"
    if any(isinstance(part, dict) and part.get("type") == "refusal" for part in _parts(output)):
        return "refusal"
    return None if any(_says_something(item) for item in output) else "empty"


def _parts(output: list[Any]) -> Iterator[Any]:
    for item in output:
        content = item.get("content") if isinstance(item, dict) else None
        yield from content if isinstance(content, list) else ()


def _says_something(item: object) -> bool:
    """Whether an item is an answer: a message with a text, or anything else but reasoning."""
    if not isinstance(item, dict) or item.get("type") == "reasoning":
        return False
    if item.get("type") != "message":
        return True
    return any(isinstance(part, dict) and part.get("text", True) for part in _parts([item]))
