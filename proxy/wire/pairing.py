"""The rules of a list of input items: each id occurs once, each call of a function has its output, and none is alone.

Source: what api.openai.com answers to lists that break them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.wire.errors import RequestError
from proxy.wire.refusals import shorten

CALLS = frozenset({"function_call", "custom_tool_call"})
OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output"})


def check_items(items: Sequence[Mapping[str, Any]]) -> None:
    """Raises RequestError for a duplicate id, an output without its call, and a call without its output."""
    ids: set[str] = set()
    open_calls: dict[str, None] = {}
    for item in items:
        item_id, call_id, kind = item.get("id"), item.get("call_id"), item.get("type")
        if isinstance(item_id, str):
            if item_id in ids:
                raise duplicate_item(item_id)
            ids.add(item_id)
        if not isinstance(call_id, str):
            continue
        if kind in CALLS:
            open_calls[call_id] = None
        elif kind in OUTPUTS:
            if call_id not in open_calls:
                raise call_not_found(call_id)
            del open_calls[call_id]
    for call_id in open_calls:
        raise output_not_found(call_id)


def without_cut_calls(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the items without calls that were cut off and have no output: no client could run them.

    Otherwise a response that ended in the middle of a call could never be continued.
    """
    answered = {item.get("call_id") for item in items if item.get("type") in OUTPUTS}
    return [
        item
        for item in items
        if item.get("type") not in CALLS or item.get("status") != "incomplete" or item.get("call_id") in answered
    ]


def duplicate_item(item_id: str, param: str = "input") -> RequestError:
    return RequestError(
        f"Duplicate item found with id {shorten(item_id)}. Remove duplicate items from your {param} and try again.",
        param=param,
    )


def call_not_found(call_id: str) -> RequestError:
    return RequestError(f"No tool call found for function call output with call_id {shorten(call_id)}.", param="input")


def output_not_found(call_id: str) -> RequestError:
    return RequestError(f"No tool output found for function call {shorten(call_id)}.", param="input")
