"""Bounds how much one call may bring along: items, text, images, files, tools.

Request: refuses with `too_many_items`, `too_much_text`, `too_many_images`, `too_many_files`, `too_many_tools` and
    `definitions_too_long`. Counted is what the call itself brings, not what a previous response, a conversation or a
    prompt template adds. A string as input is one item; other shapes than an array are one, too.
    Text is every string in input, instructions and prompt variables, except images, files, sounds and encrypted
    content, and labels (type, role, id ...) of up to 64 characters. Tools are no text: their definitions and the
    schema of the output format have a limit of their own, in characters of their JSON.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-input
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Self

import orjson
from pydantic import NonNegativeInt, model_validator

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation

ITEMS = ("input", "items")
LABELS = frozenset({
    "approval_request_id", "call_id", "container_id", "detail", "file_id", "filename", "id", "name", "namespace",
    "phase", "role", "server_label", "status", "type",
})  # fmt: skip
LONGEST_LABEL = 64
NO_TEXT = frozenset({"encrypted_content", "file_data", "file_url", "image_url", "input_audio"})
IMAGES = frozenset({"computer_screenshot", "image", "image_generation_call", "input_image"})
FILES = frozenset({"fileurl", "filedata"})


class Size(Policy):
    max_items: NonNegativeInt | None = None
    """How many items `input` may have; left out: any number, as with the other limits."""
    max_text_chars: NonNegativeInt | None = None
    """How long all text of input, instructions and prompt variables may be together, in characters."""
    max_images: NonNegativeInt | None = None
    """How many images may be given: input_image, screenshots, generated images that are sent back."""
    max_files: NonNegativeInt | None = None
    """How many files may be given as input_file."""
    max_tools: NonNegativeInt | None = None
    """How many tools may be given, those inside a namespace and in items of input too; an MCP server is one."""
    max_definition_chars: NonNegativeInt | None = None
    """How long the JSON of tools and of the output format may be together, in characters."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"there is no limit; give at least one of {', '.join(type(self).model_fields)}")
        return self

    def judging(self) -> Judge:
        """A body that is too short to hold more than is allowed needs no walk, whatever is in it: so are most."""
        least_length = min(_given(self.max_text_chars, self.max_definition_chars))
        least_count = min(_given(self.max_images, self.max_files, self.max_tools))
        most_items = min(_given(self.max_items))
        least = min(least_length, least_count, most_items)

        def judge(call: Call) -> Call:
            encoded = call.encoded
            length = len(encoded)
            if length <= least:
                return call
            few = length <= least_count or _things(encoded) <= least_count
            return call if few and length <= least_length and _items(call.body) <= most_items else self._judged(call)

        return judge

    def _judged(self, call: Call) -> Call:
        items = _items(call.body)  # told before the rest is walked through
        _hold("too_many_items", "input", f"The input has {items} items", items, self.max_items)
        found = _measured(call.body)
        _hold("too_many_images", "input", f"The input has {found.images} images", found.images, self.max_images)
        _hold("too_many_files", "input", f"The input has {found.files} files", found.files, self.max_files)
        _hold("too_many_tools", "tools", f"The request has {found.tools} tools", found.tools, self.max_tools)
        _hold("too_much_text", "input", f"The text has {found.text} characters", found.text, self.max_text_chars)
        told = f"The definitions of tools and output have {found.definitions} characters"
        _hold("definitions_too_long", "tools", told, found.definitions, self.max_definition_chars)
        return call


def _given(*limits: int | None) -> list[float]:
    return [inf if limit is None else limit for limit in limits]


def _things(encoded: bytes) -> int:
    """No fewer than are counted: each begins an array or an object, or stands behind a comma."""
    return encoded.count(b",") + encoded.count(b"[") + encoded.count(b"{") + 1


def _hold(reason: str, param: str, found: str, count: int, limit: int | None) -> None:
    if limit is not None and count > limit:
        raise PolicyViolation(reason, f"{found}; the limit is {limit}.", param=param)


@dataclass(slots=True)
class _Measure:
    """What was counted so far."""

    text: int = 0
    images: int = 0
    files: int = 0
    tools: int = 0
    definitions: int = 0

    def add_tools(self, tools: object) -> None:
        self.definitions += _json_chars(tools)
        waiting = [] if tools is None else [tools]
        while waiting:
            tool = waiting.pop()
            inner = tool.get("tools") if isinstance(tool, dict) else tool
            if isinstance(inner, list) and (inner or inner is tools):
                waiting.extend(inner)
            else:
                self.tools += 1

    def add_object(self, value: Mapping[str, Any]) -> Iterator[Any]:
        """Count an object, and give those of its values whose text counts."""
        plain = [(_plain(name), name, inner) for name, inner in value.items()]
        kinds = {inner for folded, _, inner in plain if folded == "type" and isinstance(inner, str)}
        names = {folded for folded, _, inner in plain if inner is not None}
        self.images += bool(kinds & IMAGES) or "imageurl" in names
        self.files += "input_file" in kinds or bool(names & FILES)
        for folded, name, inner in plain:
            if folded == "tools":
                if kinds == {"mcp_list_tools"}:  # what a server told of itself gives no tools
                    self.text += _json_chars(inner)
                else:
                    self.add_tools(inner)
            elif name == "arguments" and isinstance(inner, dict):
                self.text += _json_chars(inner)
            elif not _is_no_text(name, inner, kinds):
                yield inner


def _measured(body: Mapping[str, Any]) -> _Measure:
    measure = _Measure()
    measure.add_tools(body.get("tools"))
    text, prompt = body.get("text"), body.get("prompt")
    measure.definitions += _json_chars(text.get("format") if isinstance(text, dict) else None)
    variables = prompt.get("variables") if isinstance(prompt, dict) else None
    waiting = [*map(body.get, ITEMS), body.get("instructions")]
    waiting += variables.values() if isinstance(variables, dict) else [variables]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            measure.text += len(value)
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(measure.add_object(value))
    return measure


def _items(body: Mapping[str, Any]) -> int:
    given = [body[name] for name in ITEMS if body.get(name) is not None]
    return sum(len(value) if isinstance(value, list) else 1 for value in given)


def _json_chars(value: object) -> int:
    return 0 if value is None else len(orjson.dumps(value).decode())


def _is_no_text(name: str, value: object, kinds: set[str]) -> bool:
    if name in LABELS:
        return isinstance(value, str) and len(value) <= LONGEST_LABEL
    return name in NO_TEXT or (name == "result" and kinds == {"image_generation_call"})


def _plain(name: str) -> str:
    """A name as readers know it that overlook case and underscores."""
    return name.casefold().replace("_", "")
