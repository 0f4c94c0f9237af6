"""Composes responses: full objects, and events in the order that the strictest client requires.

    response.created  response.in_progress
      per item, output_index 0, 1, 2 ...:
        response.output_item.added
          ... the events of its item type, see items.py
        response.output_item.done
    response.completed | response.incomplete | response.failed

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

from proxy.wire.event import Batch, Event, Run, terminal_type
from proxy.wire.items import (
    JSON,
    ItemEvent,
    closing_events,
    delta_event,
    empty_item,
    finished_item,
    inner_events,
    opening_events,
)


def new_id(prefix: str) -> str:
    """Return an id in OpenAI's form: `resp_` and 48 hex digits. Some clients refuse more than 64 characters."""
    return f"{prefix}_{secrets.token_hex(24)}"


def usage(*, input_tokens: int, output_tokens: int, cached_tokens: int = 0, reasoning_tokens: int = 0) -> JSON:
    """Return token counts with every detail that typed clients require."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": input_tokens + output_tokens,
    }


# The request fields that a response echoes, with the value for a request that leaves them out.
_ECHOED: JSON = {
    "frequency_penalty": 0.0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "safety_identifier": None,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def response_object(body: Mapping[str, Any], *, response_id: str, created_at: int, store: bool = False) -> JSON:
    """Return a response in progress that echoes its request: every key that OpenAI sends, null where unknown."""
    given = {name: value for name, value in body.items() if value is not None}
    echoed: JSON = {**_ECHOED, **{name: value for name, value in given.items() if name in _ECHOED}}
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": body["model"],
        "output": [],
        **echoed,
        "reasoning": {"effort": None, "summary": None} | _object(given.get("reasoning")),
        "service_tier": "default",
        "store": store,
        "text": {"format": {"type": "text"}, "verbosity": "medium"} | _object(given.get("text")),
        "tools": [_echoed_tool(tool) for tool in echoed["tools"]] if isinstance(echoed["tools"], list) else [],
        "usage": None,
    }


def typed_response(response: Mapping[str, Any]) -> JSON:
    """Return a response with every field that typed clients require, as some servers leave out; what it has stays."""
    defaults: JSON = {
        "id": "", "object": "response", "created_at": 0, "model": "", "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": [],
    }  # fmt: skip
    missing = {name: value for name, value in defaults.items() if response.get(name) is None}
    counts = response.get("usage")
    return {
        "output": [],
        **response,
        **missing,
        **({"usage": _typed_usage(counts)} if isinstance(counts, dict) else {}),
    }


def _typed_usage(counts: JSON) -> JSON:
    """Return token counts with the details that typed clients require."""
    details = {
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    input_tokens, output_tokens = counts.get("input_tokens") or 0, counts.get("output_tokens") or 0
    total: JSON = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    if isinstance(input_tokens, int) and isinstance(output_tokens, int):
        total["total_tokens"] = input_tokens + output_tokens
    missing = {name: value for name, value in total.items() if counts.get(name) is None}
    return {**counts, **missing, **{name: zero | _object(counts.get(name)) for name, zero in details.items()}}


def _echoed_tool(tool: Any) -> Any:
    if isinstance(tool, dict) and tool.get("type") == "function":
        return {"description": None, "parameters": None, "strict": False} | tool
    return tool


def _object(value: Any) -> JSON:
    return value if isinstance(value, dict) else {}


class Composer:
    """Composes one response event by event. Each method returns the events to send; `response` is their sum.

    Only one item is open at a time; opening the next one or finishing the response closes it.
    """

    def __init__(self, response: JSON) -> None:
        self.response = {**response, "output": [*response["output"]]}  # appended to
        self._number = 0
        self._open: JSON | None = None
        self._texts: list[str] = []
        self._logprobs: list[JSON] = []
        self._delta_parts: tuple[bytes, bytes, bytes] | None = None  # of the open item; None before the first run

    def start(self) -> list[Event]:
        return [self._lifecycle("response.created"), self._lifecycle("response.in_progress")]

    def open_message(self) -> list[Event]:
        return self._open_item({
            "id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": [],
        })  # fmt: skip

    def open_reasoning(self) -> list[Event]:
        """Open the reasoning before an answer; its text follows in deltas."""
        return self._open_item({
            "id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": [],
        })  # fmt: skip

    def open_function_call(self, name: str, *, namespace: str | None = None) -> list[Event]:
        """Open a call of a function that the caller runs; its arguments follow in deltas."""
        return self._open_call("function_call", "fc", name, "arguments", namespace)

    def open_custom_call(self, name: str, *, namespace: str | None = None) -> list[Event]:
        """Open a call of a custom tool, whose input is free text; it follows in deltas."""
        return self._open_call("custom_tool_call", "ctc", name, "input", namespace)

    def delta(self, text: str, logprobs: Sequence[JSON] = ()) -> list[Event]:
        """Add text to the open item: a message's or reasoning's text, a call's arguments or input.

        `logprobs` belong to the tokens of a message's text.
        """
        event = delta_event(self._opened, text, logprobs)
        self._texts.append(text)
        self._logprobs += logprobs
        return [self._in_item(event)]

    def delta_run(self, text: str) -> Run:
        """Do the same as `delta`, and return its event encoded: an answer has one for each of its tokens."""
        start, middle, end = self._delta_parts or self.prepare_runs()
        self._texts.append(text)
        number, self._number = self._number, self._number + 1
        return Run(b"%b%d%b%b%b" % (start, number, middle, orjson.dumps(text), end))

    def prepare_runs(self) -> tuple[bytes, bytes, bytes]:
        """Make what all runs of the open item have in common; the first one makes it if nothing has before."""
        self._delta_parts = _delta_parts(self._in_item(delta_event(self._opened, "", ())))
        self._number -= 1
        return self._delta_parts

    def close(self, status: str = "completed") -> list[Event]:
        """Close the open item, if there is one. `status` is "incomplete" for an item that was cut short."""
        if self._open is None:
            return []
        item = finished_item(self._opened, "".join(self._texts), self._logprobs) | {"status": status}
        return [*(self._in_item(event) for event in closing_events(item)), *self._done(item)]

    def item(self, item: JSON) -> list[Event]:
        """Add a finished item with the events of its type; an unknown type has only `added` and `done`."""
        events = self._add(empty_item(item))
        return [*events, *(self._in_item(event) for event in inner_events(item)), *self._done(item)]

    def finish(self, tokens: JSON | None, *, incomplete: str | None = None) -> list[Event]:
        """Close the open item and end the response; `incomplete` is the reason if the response was cut short."""
        events = self.close("incomplete" if incomplete else "completed")
        self.response["usage"] = tokens
        self.response["completed_at"] = None if incomplete else int(time.time())
        self.response["incomplete_details"] = {"reason": incomplete} if incomplete else None
        return [*events, self._end("incomplete" if incomplete else "completed")]

    def finish_as(self, response: Mapping[str, Any]) -> Event:
        """Return the terminal event of a response that is already complete."""
        return self._event(terminal_type(response.get("status")), response=dict(response))

    def _end(self, status: str) -> Event:
        self.response["status"] = status
        return self._lifecycle(f"response.{status}")

    @property
    def _opened(self) -> JSON:
        if self._open is None:
            raise ValueError("no item is open")
        return self._open

    @property
    def _index(self) -> int:
        return len(self.response["output"])

    def _open_call(self, kind: str, prefix: str, name: str, field: str, namespace: str | None) -> list[Event]:
        call = {"id": new_id(prefix), "type": kind, "status": "in_progress", "call_id": new_id("call"), "name": name}
        in_namespace = {"namespace": namespace} if namespace else {}
        return self._open_item(call | in_namespace | {field: ""})

    def _open_item(self, item: JSON) -> list[Event]:
        """Open an item whose text is streamed."""
        events = self._add(item)
        return [*events, *(self._in_item(event) for event in opening_events(item))]

    def _add(self, item: JSON) -> list[Event]:
        events = self.close()
        self._open, self._texts, self._logprobs, self._delta_parts = item, [], [], None
        return [*events, self._event("response.output_item.added", output_index=self._index, item=item)]

    def _done(self, item: JSON) -> list[Event]:
        event = self._event("response.output_item.done", output_index=self._index, item=item)
        self.response["output"].append(item)
        self._open = None
        return [event]

    def _in_item(self, event: ItemEvent) -> Event:
        return self._event(event[0], item_id=self._opened.get("id", ""), output_index=self._index, **event[1])

    def _lifecycle(self, type: str) -> Event:  # noqa: A002
        return self._event(type, response={**self.response, "output": [*self.response["output"]]})

    def _event(self, type: str, **fields: Any) -> Event:  # noqa: A002
        data = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        return Event(type, data=data)


def _delta_parts(delta: Event) -> tuple[bytes, bytes, bytes]:
    """Return what is before the number of an empty delta's frame, between number and text, and after the text."""
    start, key, rest = delta.sse.partition(b'"sequence_number":')
    middle, text_key, end = rest[rest.index(b",") :].partition(b'"delta":')
    return start + key, middle + text_key, end.removeprefix(b'""')


def in_runs(events: Sequence[Event | Run], followed: Collection[str]) -> Batch:
    """Return events as a batch: those of types that nothing follows, which are most deltas, only as encoded runs."""
    batch: list[Event | Run] = []
    frames: list[bytes] = []  # of the events since the last one that is followed
    for event in events:
        if event.type not in followed:
            frames.append(event.sse)
            continue
        if frames:
            batch.append(Run(b"".join(frames)))
            frames = []
        batch.append(event)
    return [*batch, Run(b"".join(frames))] if frames else batch


def events_of(response: Mapping[str, Any]) -> list[Event]:
    """Return the events of a finished response as if it had been streamed, with all fields of typed clients."""
    response = typed_response(response)
    initial = {**response, "status": "in_progress", "output": [], "usage": None, "completed_at": None, "error": None}
    composer = Composer(initial | {"incomplete_details": None})
    events = composer.start()
    output = response.get("output")
    for item in output if isinstance(output, list) else []:
        events += composer.item(item) if isinstance(item, dict) else []
    return [*events, composer.finish_as(response)]
