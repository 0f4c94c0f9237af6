"""Checks items that the gateway keeps for a conversation: every later call repeats them.

Fields that the protocol defines must be there and have its types. `id` and `status` may be left out, unknown types of
items and parts, and unknown fields, pass: servers and clients have their own.

Source: the OpenAPI document (InputItem)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.state.items import ID, MAX_ID_CHARS, REFERENCE, item_type
from proxy.wire.errors import RequestError
from proxy.wire.items import JSON
from proxy.wire.refusals import invalid_type, invalid_value, missing_parameter, string_too_long

MAX_TYPE_CHARS = 64
ROLES = ("user", "assistant", "system", "developer")
TEXT, LIST, OBJECT, FLAG, TEXT_OR_LIST = (str,), (list,), (dict,), (bool,), (str, list)
Types = tuple[type, ...]
CALL: Mapping[str, Types] = {"call_id": TEXT}
NAMED_CALL: Mapping[str, Types] = {**CALL, "name": TEXT}
# The fields that an item of each type must have, but `id` and `status`.
REQUIRED: Mapping[str, Mapping[str, Types]] = {
    "message": {"role": TEXT, "content": TEXT_OR_LIST},
    "function_call": {**NAMED_CALL, "arguments": TEXT},
    "function_call_output": {"output": TEXT_OR_LIST},
    "custom_tool_call": {**NAMED_CALL, "input": TEXT},
    "custom_tool_call_output": {**CALL, "output": TEXT_OR_LIST},
    "reasoning": {"summary": LIST},
    "compaction": {"encrypted_content": TEXT},
    "file_search_call": {"queries": LIST},
    "web_search_call": {"action": OBJECT},
    "computer_call": {**CALL, "pending_safety_checks": LIST},
    "computer_call_output": {**CALL, "output": OBJECT},
    "image_generation_call": {},
    "code_interpreter_call": {"container_id": TEXT},
    "local_shell_call": {**CALL, "action": OBJECT},
    "local_shell_call_output": {"output": TEXT},
    "shell_call": {**CALL, "action": OBJECT},
    "shell_call_output": {**CALL, "output": LIST},
    "apply_patch_call": {**CALL, "operation": OBJECT},
    "apply_patch_call_output": {**CALL},
    "tool_search_call": {"arguments": OBJECT},
    "tool_search_output": {"tools": LIST},
    "additional_tools": {"role": TEXT, "tools": LIST},
    "mcp_list_tools": {"server_label": TEXT, "tools": LIST},
    "mcp_call": {"server_label": TEXT, "name": TEXT, "arguments": TEXT},
    "mcp_approval_request": {"server_label": TEXT, "name": TEXT, "arguments": TEXT},
    "mcp_approval_response": {"approval_request_id": TEXT, "approve": FLAG},
    "program": {**CALL, "code": TEXT, "fingerprint": TEXT},
    "program_output": {**CALL, "result": TEXT},
    "compaction_trigger": {},
    REFERENCE: {"id": TEXT},
}
# The fields that have a type if they are given.
OPTIONAL: Mapping[str, Types] = {
    "id": TEXT, "status": TEXT, "call_id": TEXT, "name": TEXT, "namespace": TEXT, "phase": TEXT,
    "encrypted_content": TEXT, "server_label": TEXT,
}  # fmt: skip
# Parts of messages and of outputs of tools, by the list that holds them.
PARTS: Mapping[str, Mapping[str, Mapping[str, Types]]] = {
    "content": {
        "input_text": {"text": TEXT}, "output_text": {"text": TEXT}, "refusal": {"refusal": TEXT}, "input_image": {},
        "input_file": {}, "reasoning_text": {"text": TEXT},
    },
    "output": {"input_text": {"text": TEXT}, "input_image": {}, "input_file": {}},
    "summary": {"summary_text": {"text": TEXT}},
}  # fmt: skip
WITH_PARTS: Mapping[str, Sequence[str]] = {
    "message": ("content",), "reasoning": ("summary", "content"), "function_call_output": ("output",),
    "custom_tool_call_output": ("output",),
}  # fmt: skip
EXPECTED: Mapping[Types, str] = {
    TEXT: "a string", LIST: "an array of objects", OBJECT: "an object", FLAG: "a boolean",
    TEXT_OR_LIST: "one of a string or array of objects",
}  # fmt: skip


def check_new_items(items: Sequence[JSON], param: str) -> None:
    """Raises RequestError, with the path of the field, for an item that no call could repeat."""
    for index, item in enumerate(items):
        _check_item(item, f"{param}[{index}]")


def _check_item(item: JSON, path: str) -> None:
    if not isinstance(item.get("type"), str | None):
        raise invalid_type(f"{path}.type", "a string", item["type"])
    kind = item_type(item)
    if len(kind) > MAX_TYPE_CHARS:
        raise string_too_long(f"{path}.type", MAX_TYPE_CHARS, len(kind))
    _check_fields(item, path, REQUIRED.get(kind, {}))
    if (given := item.get("id")) is not None:
        _check_id(given, f"{path}.id")
    if kind == "message" and item["role"] not in ROLES:
        raise invalid_value(f"{path}.role", item["role"], ", ".join(map(repr, ROLES)))
    for field in WITH_PARTS.get(kind, ()):
        parts = item.get(field)
        if isinstance(parts, list):
            _check_parts(parts, f"{path}.{field}", PARTS[field])
        elif not isinstance(parts, str | None):
            raise invalid_type(f"{path}.{field}", EXPECTED[LIST], parts)


def _check_fields(item: JSON, path: str, required: Mapping[str, Types]) -> None:
    for name, types in required.items():
        if name not in item:
            raise missing_parameter(f"{path}.{name}")
        if type(item[name]) not in types:
            raise invalid_type(f"{path}.{name}", EXPECTED[types], item[name])
    for name, types in OPTIONAL.items():
        if item.get(name) is not None and type(item[name]) not in types:
            raise invalid_type(f"{path}.{name}", EXPECTED[types], item[name])


def _check_id(given: str, path: str) -> None:
    if len(given) > MAX_ID_CHARS:
        raise string_too_long(path, MAX_ID_CHARS, len(given))
    if not ID.fullmatch(given):
        message = (
            f"Invalid '{path}': '{given}'. Expected an ID that contains letters, numbers, underscores, or dashes, but "
            "this value contained additional characters."
        )
        raise RequestError(message, code="invalid_value", param=path)


def _check_parts(parts: Sequence[Any], path: str, known: Mapping[str, Mapping[str, Types]]) -> None:
    for index, part in enumerate(parts):
        where = f"{path}[{index}]"
        if not isinstance(part, dict):
            raise invalid_type(where, "an object", part)
        kind = part.get("type")
        if kind is None:
            raise missing_parameter(f"{where}.type")
        if not isinstance(kind, str):
            raise invalid_type(f"{where}.type", "a string", kind)
        _check_fields(part, where, known.get(kind, {}))
