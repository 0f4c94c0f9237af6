"""Kinds of tools: who runs a tool, what counts as a call, and which names resemble those that policies check.

Source: https://platform.openai.com/docs/guides/tools and, for items, what was measured to count for `max_tool_calls`.
"""

from collections.abc import Mapping
from typing import Any

from proxy.wire.fields import fold_name

CALLER_TYPES = frozenset({
    "function", "custom", "local_shell", "apply_patch", "computer", "computer_use", "computer_use_preview",
})  # fmt: skip
# Types of tools that have no address: for them a fast check is enough.
TYPES_WITHOUT_ADDRESS = (
    "apply_patch", "code_interpreter", "computer", "computer_use", "computer_use_preview", "custom", "file_search",
    "function", "image_generation", "local_shell", "shell", "web_search", "web_search_preview",
)  # fmt: skip
# Fields of such tools that contain neither an address nor further tools.
HARMLESS_FIELDS = frozenset({
    "type", "name", "description", "parameters", "strict", "format", "defer_loading", "output_schema",
    "allowed_callers", "container", "filters", "user_location", "search_context_size", "vector_store_ids",
    "max_num_results", "ranking_options", "environment", "display_width", "display_height", "size", "quality",
    "output_format", "model", "execution", "cache_control",
})  # fmt: skip
ADDRESS_FIELDS = ("server_url", "connector_id", "tunnel_id")  # what an MCP server may be reached by
CHECKED_FIELDS = frozenset({*ADDRESS_FIELDS, "server_label", "type", "name", "tools", "function", "custom"})
_CHECKED_WITHOUT_UNDERSCORES = frozenset(name.replace("_", "") for name in CHECKED_FIELDS)
# Fields of a request that give a backend no tools other than those in `tools` and `input`. Some other fields continue
# something that had tools, and what unknown fields do is unknown.
FIELDS_WITHOUT_TOOLS = frozenset({
    "background", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
    "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier",
    "service_tier", "store", "stream", "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs",
    "top_p", "truncation", "user", "seed", "stop", "top_k",
})  # fmt: skip
CALLER_CALLS = frozenset({"local_shell_call", "apply_patch_call", "computer_call"})
CALL_KINDS = {
    "function_call": "function",
    "custom_tool_call": "custom",
    "web_search_call": "server",
    "file_search_call": "server",
    "code_interpreter_call": "server",
    "image_generation_call": "server",
    "mcp_call": "server",
    "program": "server",
}


def find_lookalike(tool: object) -> str | None:
    """Return a field of a tool that a lenient upstream may read as one that policies check (`serverUrl`), printable."""
    inner = (tool.get("function"), tool.get("custom")) if isinstance(tool, dict) else ()
    names: list[str] = [name for holder in (tool, *inner) if isinstance(holder, dict) for name in holder]
    for name in names:
        if name in HARMLESS_FIELDS or name in CHECKED_FIELDS:
            continue
        if fold_name(name).replace("_", "") in _CHECKED_WITHOUT_UNDERSCORES:
            return name[:32].encode("ascii", "backslashreplace").decode()[:48]
    return None


def is_run_by_caller(tool: Any) -> bool:
    """Whether the caller runs a tool of a request. An unknown tool is taken for one that the server runs."""
    if not isinstance(tool, dict):
        return False
    kind = tool.get("type")
    if isinstance(kind, str) and kind in CALLER_TYPES:
        return True
    if kind == "namespace":
        inner = tool.get("tools")
        return isinstance(inner, list) and all(map(_has_caller_type, inner))
    if kind == "shell":
        environment = tool.get("environment")
        return isinstance(environment, dict) and environment.get("type") == "local"
    if kind == "tool_search":
        return tool.get("execution") == "client"
    return False


def _has_caller_type(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind in CALLER_TYPES


def has_server_tools(body: Mapping[str, Any]) -> bool:
    """Whether a request offers tools that the server runs.

    A prompt template may contain some, and so may an item of the input (`additional_tools`, the output of a search for
    tools). It walks no deeper than the items: a backend takes tools from there, and every call passes through here.
    """
    tools, given = body.get("tools"), body.get("input")
    if body.get("prompt") is not None or (tools is not None and _include_server_tool(tools)):
        return True
    if type(given) is list:
        for item in given:
            if type(item) is dict and "tools" in item and _include_server_tool(item["tools"]):
                return True
    return False


def _include_server_tool(tools: Any) -> bool:
    if not isinstance(tools, list):
        return tools is not None
    try:
        for tool in tools:
            if tool["type"] not in CALLER_TYPES and not is_run_by_caller(tool):  # the first test decides most of them
                return True
    except (KeyError, TypeError):  # without a type, or with one that is not a string: an unknown tool
        return True
    return False


def may_have_hidden_tools(body: Mapping[str, Any]) -> bool:
    """Whether a backend may run tools that a request does not offer: it continues something, or has unknown fields."""
    return not (
        body.keys() <= FIELDS_WITHOUT_TOOLS or all(body[name] is None for name in body.keys() - FIELDS_WITHOUT_TOOLS)
    )


def kind_of_call(item: Mapping[str, Any]) -> str | None:
    """Return what an output item counts as: "server", "function", "custom", "unknown", or None if it is no such call.

    Other calls that the caller runs (a local shell, a patch, a computer) are None.
    """
    kind = item.get("type")
    if not isinstance(kind, str) or kind in CALLER_CALLS:
        return None
    if kind == "shell_call":
        environment = item.get("environment")
        if not isinstance(environment, dict):
            return "unknown"  # it does not say where it runs
        return None if environment.get("type") == "local" else "server"
    if kind == "tool_search_call":
        return None if item.get("execution") == "client" else "server"
    return CALL_KINDS.get(kind, "unknown" if kind.endswith("_call") else None)
