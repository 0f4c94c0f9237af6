"""Limits how much one call may contain: items, text, images, files, tools.

Request: refuses with `too_many_items`, `too_much_text`, `too_many_images`, `too_many_files`, `too_many_tools` and
    `definitions_too_long`, and with `too_many_values` what has too many JSON values to be counted. It counts what the
    call itself contains, not what a previous response, a conversation or a prompt template adds. A string as input is
    one item, and so is anything else but an array.
    Text is every string in input, instructions and prompt variables, except images, files, sounds and encrypted
    content, and labels (type, role, id ...) of up to 64 characters. Tools are not text: their definitions and the
    schema of the output format have a limit of their own, in characters of their JSON; they are counted wherever they
    stand, like the policy `tools` finds them. Fields in which other protocols have the conversation (`messages` ...) or
    tools (`functions` ...) are refused with `alternative_field`.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-input
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, ClassVar, Self

import orjson
from pydantic import NonNegativeInt, model_validator

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support.alternatives import INPUT, TOOLS, alternatives_check
from policies.support.tools import plain_type
from policies.support.walk import ITEM_FIELDS, ToolList, is_tool_report, plain_name, tool_lists, walk
from proxy.context import Context
from proxy.wire.call import INPUT_OPERATIONS, Call, Operation
from proxy.wire.errors import PolicyViolation
from proxy.wire.large_bytes import count_text

LABELS = frozenset({
    "approval_request_id", "call_id", "container_id", "detail", "file_id", "filename", "id", "name", "namespace",
    "phase", "role", "server_label", "status", "type",
})  # fmt: skip
MAX_LABEL_CHARS = 64
FIELDS_WITHOUT_TEXT = frozenset({"encrypted_content", "file_data", "file_url", "image_url", "input_audio"})
IMAGE_TYPES = frozenset({"computer_screenshot", "image", "image_generation_call", "input_image"})
FILE_TYPE = "input_file"
FILE_FIELDS = frozenset({"fileurl", "filedata"})


class Size(Policy):
    operations: ClassVar[frozenset[Operation]] = INPUT_OPERATIONS

    max_items: NonNegativeInt | None = None
    """How many items `input` may have; left out, this and every other limit does not apply."""
    max_text_chars: NonNegativeInt | None = None
    """How long all text of input, instructions and prompt variables may be together, in characters."""
    max_images: NonNegativeInt | None = None
    """How many images a call may contain: input_image, screenshots, generated images that are sent back."""
    max_files: NonNegativeInt | None = None
    """How many files a call may contain as input_file."""
    max_tools: NonNegativeInt | None = None
    """How many tools a call may contain, those in a namespace and in items of input too; an MCP server is one."""
    max_definition_chars: NonNegativeInt | None = None
    """How long the JSON of tools and of the output format may be together, in characters."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"there is no limit; give at least one of {', '.join(type(self).model_fields)}")
        return self

    def request_check(self, state: PolicyState) -> RequestCheck:
        """Most bodies are too short to exceed a limit, whatever they contain; these are not walked."""
        del state
        min_length = _smallest(self.max_text_chars, self.max_definition_chars)
        min_count = _smallest(self.max_images, self.max_files, self.max_tools)
        max_items = _smallest(self.max_items)
        smallest = min(min_length, min_count, max_items)
        check_fully, refuse_alternatives = self._full_check(), alternatives_check(INPUT, TOOLS)

        def check(call: Call, _context: Context) -> Call:
            refuse_alternatives(call.body, call.query)
            encoded = call.encoded
            length = len(encoded)
            if length <= smallest:
                return call
            has_few_values = length <= min_count or _most_values(encoded) <= min_count
            if not (has_few_values and length <= min_length and _item_count(call.body) <= max_items):
                check_fully(call.body)
            return call

        return Repeatable(check)

    def _full_check(self) -> Callable[[Mapping[str, Any]], None]:
        """Return the function that counts everything in a body. It raises PolicyViolation."""
        max_items, max_images, max_files, max_tools = self.max_items, self.max_images, self.max_files, self.max_tools
        max_text, max_definitions = self.max_text_chars, self.max_definition_chars

        def check(body: Mapping[str, Any]) -> None:
            items = _item_count(body)  # checked before the rest of the body is walked
            _require("too_many_items", "input", f"The input has {items} items", items, max_items)
            found = Measure(body)
            _require("too_many_images", "input", f"The input has {found.images} images", found.images, max_images)
            _require("too_many_files", "input", f"The input has {found.files} files", found.files, max_files)
            _require("too_many_tools", "tools", f"The request has {found.tools} tools", found.tools, max_tools)
            _require("too_much_text", "input", f"The text has {found.text} characters", found.text, max_text)
            definitions = f"The definitions of tools and output have {found.definitions} characters"
            _require("definitions_too_long", "tools", definitions, found.definitions, max_definitions)

        return check


def _smallest(*limits: int | None) -> float:
    return min(inf if limit is None else limit for limit in limits)


def _most_values(encoded: bytes) -> int:
    """An upper bound of the values in a body: each begins an array or an object, or follows a comma."""
    return count_text(encoded, b",") + count_text(encoded, b"[") + count_text(encoded, b"{") + 1


def _require(reason: str, param: str, found: str, count: int, limit: int | None) -> None:
    """Raises PolicyViolation when a count exceeds its limit."""
    if limit is not None and count > limit:
        raise PolicyViolation(reason, f"{found}; the limit is {limit}.", param=param)


class Measure:
    """What was counted in a body."""

    __slots__ = ("definitions", "files", "images", "text", "tools")

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.text = self.images = self.files = self.tools = self.definitions = 0
        for found in tool_lists(body):
            self._add_tools(found)
        text, prompt = body.get("text"), body.get("prompt")
        self.definitions += _json_chars(text.get("format") if isinstance(text, dict) else None)
        variables = prompt.get("variables") if isinstance(prompt, dict) else None
        roots = [*map(body.get, ITEM_FIELDS), body.get("instructions")]
        roots += variables.values() if isinstance(variables, dict) else [variables]
        for _, value, waiting in walk(roots, "input"):
            if isinstance(value, str):
                self.text += len(value)
            else:
                self._add_object(value, waiting)

    def _add_tools(self, found: ToolList) -> None:
        """Count a list. Its tools that contain a list are not counted: the list is."""
        if not found.is_nested:
            self.definitions += _json_chars(found.value)
        if found.value is None:
            return
        waiting = [*found.value] if isinstance(found.value, list) else [found.value]
        while waiting:
            tool = waiting.pop()
            if isinstance(tool, list) and tool:
                waiting += tool
            elif not isinstance(tool, dict) or not any(plain_name(name) == "tools" and tool[name] for name in tool):
                self.tools += 1

    def _add_object(self, value: Mapping[str, Any], waiting: list[object]) -> None:
        """Count an object, and add those of its values that may contain text to `waiting`."""
        plain = [(plain_name(name), name, inner) for name, inner in value.items()]
        kinds = {plain_type(inner) for folded, _, inner in plain if folded == "type" and isinstance(inner, str)}
        names = {folded for folded, _, inner in plain if inner is not None}
        self.images += bool(kinds & IMAGE_TYPES) or "imageurl" in names
        self.files += FILE_TYPE in kinds or bool(names & FILE_FIELDS)
        for folded, name, inner in plain:
            if folded == "tools":
                if is_tool_report(value):  # the tools that a server reports are not given to the model
                    self.text += _json_chars(inner)
                elif isinstance(inner, str):
                    waiting.append(inner)
            elif name == "arguments" and isinstance(inner, dict):
                self.text += _json_chars(inner)
            elif not _is_without_text(name, inner, kinds):
                waiting.append(inner)


def _item_count(body: Mapping[str, Any]) -> int:
    given = [body[name] for name in ITEM_FIELDS if body.get(name) is not None]
    return sum(len(value) if isinstance(value, list) else 1 for value in given)


def _json_chars(value: object) -> int:
    return 0 if value is None else len(orjson.dumps(value).decode())


def _is_without_text(name: str, value: object, kinds: set[str]) -> bool:
    if name in LABELS:
        return isinstance(value, str) and len(value) <= MAX_LABEL_CHARS
    return name in FIELDS_WITHOUT_TEXT or (name == "result" and kinds == {"image_generation_call"})
