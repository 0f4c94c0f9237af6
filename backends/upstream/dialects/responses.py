"""The response object in the first events and the last one of a stream, as clients need it."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from proxy.wire.compose import new_id, typed_response
from proxy.wire.event import TERMINALS, terminal_type
from proxy.wire.items import JSON

DONE = "response.done"
"""What some servers call the last event."""
OPENING = frozenset({"response.created", "response.queued", "response.in_progress"})
NEEDED = ("id", "object", "created_at", "model", "output", "parallel_tool_calls", "tool_choice", "tools")
"""The fields of a response that typed clients need. Source: openai-python."""
DETAILS = frozenset({"input_tokens_details", "output_tokens_details"})
"""The fields of token counts that typed clients need."""


class ResponseRepairs:
    """Mends the response object in the first events and in the last one."""

    def __init__(self, kinds: frozenset[str], counts: Counter[str], model: str) -> None:
        self.done: dict[int, Any] = {}  # the finished items, by output_index
        self._kinds = kinds
        self._counts = counts
        self._model = model
        self._id: object = None

    def mended(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the data of an event that has the response; the same object if it needs no repair."""
        response = data.get("response")
        whole = self.whole(response if isinstance(response, dict) else {})
        status = "queued" if kind == "response.queued" else "in_progress"
        if kind not in OPENING:
            whole = self._with_items(whole)
            last = self._terminal_type(kind, whole)
            if last != kind:
                self._counts["terminal"] += 1
                data = {**data, "type": last}
            status = last.removeprefix("response.")
        if whole.get("status") is None and "lifecycle" in self._kinds:
            self._counts["lifecycle"] += 1
            whole = {**whole, "status": status}
        return data if whole is response or not whole else {**data, "response": whole}

    def whole(self, response: JSON) -> JSON:
        """Return a response with the fields that typed clients need, and the id that it had first."""
        if "lifecycle" not in self._kinds:
            return response
        self._id = self._id or response.get("id") or new_id("resp")
        usage = response.get("usage")
        is_counted = not isinstance(usage, dict) or usage.keys() >= DETAILS
        if is_counted and None not in [response.get(name) for name in NEEDED] and response["id"] == self._id:
            return response
        self._counts["lifecycle"] += 1
        known = {"model": response.get("model") or self._model, "created_at": response.get("created_at")}
        known["created_at"] = known["created_at"] or int(time.time())
        return typed_response({**response, **known, "id": self._id})

    def _with_items(self, response: JSON) -> JSON:
        done, output = [self.done[index] for index in sorted(self.done)], response.get("output")
        if not output and done and "output" in self._kinds:
            self._counts["output"] += 1
            return {**response, "output": done}
        if "item_ids" in self._kinds and isinstance(output, list) and len(output) == len(done):
            pinned = [_with_id(item, finished) for item, finished in zip(output, done, strict=True)]
            if pinned != output:
                self._counts["item_ids"] += 1
                return {**response, "output": pinned}
        return response

    def _terminal_type(self, kind: str, response: JSON) -> str:
        """Return the type that the last event must have: what the response's status says."""
        status = response.get("status")
        if "terminal" not in self._kinds:
            return kind
        if f"response.{status}" in TERMINALS:
            return f"response.{status}"
        if kind != DONE:
            return kind
        return "response.incomplete" if status == "cancelled" else terminal_type(status)


def _with_id(item: Any, finished: Any) -> Any:
    """Return an item of the last event with the id that it had before."""
    is_same = isinstance(item, dict) and isinstance(finished, dict) and item.get("type") == finished.get("type")
    return {**item, "id": finished["id"]} if is_same and finished.get("id") else item
