"""Who runs a tool: the caller, or the server while it makes its response.

Source: https://platform.openai.com/docs/guides/tools and, for items, what was measured to count for `max_tool_calls`.
"""

from collections.abc import Mapping
from typing import Any

from proxy.wire.fields import fold_name

CALLERS_TOOLS = frozenset({
    "function", "custom", "local_shell", "apply_patch", "computer", "computer_use", "computer_use_preview",
})  # fmt: skip
KINDS_OF_CALLS = {
    "function_call": "function",
    "custom_tool_call": "custom",
    "web_search_call": "server",
    "file_search_call": "server",
    "code_interpreter_call": "server",
    "image_generation_call": "server",
    "mcp_call": "server",
    "program": "server",
}
# Fields of a request that bring no tools but those that one sees: of others, some go on from what had some, and what
# the rest does only their inventor knows.
PLAIN_FIELDS = frozenset({
    "background", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
    "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier",
    "service_tier", "store", "stream", "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs",
    "top_p", "truncation", "user", "seed", "stop", "top_k",
})  # fmt: skip
ADDRESSES = ("server_url", "connector_id", "tunnel_id")  # what an MCP server may be reached by
# Types of tools that no address stands in, as they are written: for them a first look is enough.
ORDINARY_TOOLS = (
    "apply_patch", "code_interpreter", "computer", "computer_use", "computer_use_preview", "custom", "file_search",
    "function", "image_generation", "local_shell", "shell", "web_search", "web_search_preview",
)  # fmt: skip
# Names in them that bring neither an address nor further tools.
USUAL_NAMES = frozenset({
    "type", "name", "description", "parameters", "strict", "format", "defer_loading", "output_schema",
    "allowed_callers", "container", "filters", "user_location", "search_context_size", "vector_store_ids",
    "max_num_results", "ranking_options", "environment", "display_width", "display_height", "size", "quality",
    "output_format", "model", "execution", "cache_control",
})  # fmt: skip
JUDGED_NAMES = frozenset({*ADDRESSES, "server_label", "type", "name", "tools", "function", "custom"})
_JOINED = frozenset(name.replace("_", "") for name in JUDGED_NAMES)
CALLERS_CALLS = frozenset({"local_shell_call", "apply_patch_call", "computer_call"})


def lookalike_in(tool: object) -> str | None:
    """A name in a tool that a forgiving upstream may read as one that policies judge (`serverUrl`), made printable."""
    inner = (tool.get("function"), tool.get("custom")) if isinstance(tool, dict) else ()
    names: list[str] = [name for holder in (tool, *inner) if isinstance(holder, dict) for name in holder]
    for name in names:
        if name not in USUAL_NAMES and name not in JUDGED_NAMES and fold_name(name).replace("_", "") in _JOINED:
            return name[:32].encode("ascii", "backslashreplace").decode()[:48]
    return None


def is_callers(tool: Any) -> bool:
    """Whether a tool of a request is run by the caller. What nobody knows is the server's."""
    if not isinstance(tool, dict):
        return False
    kind = tool.get("type")
    if isinstance(kind, str) and kind in CALLERS_TOOLS:
        return True
    if kind == "namespace":
        inner = tool.get("tools")
        return isinstance(inner, list) and all(map(_is_named, inner))
    if kind == "shell":
        environment = tool.get("environment")
        return isinstance(environment, dict) and environment.get("type") == "local"
    if kind == "tool_search":
        return tool.get("execution") == "client"
    return False


def _is_named(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind in CALLERS_TOOLS


def has_server_tools(body: Mapping[str, Any]) -> bool:
    """Whether answering a request may run tools on the server's side.

    A prompt template may bring some of its own, and so may an item of the input (`additional_tools`, the output of a
    search for tools).
    """
    tools, given = body.get("tools"), body.get("input")
    if body.get("prompt") is not None or (tools is not None and _are_the_servers(tools)):
        return True
    if type(given) is list:
        for item in given:
            if type(item) is dict and "tools" in item and _are_the_servers(item["tools"]):
                return True
    return False


def _are_the_servers(tools: Any) -> bool:
    if not isinstance(tools, list):
        return tools is not None
    try:
        for tool in tools:
            if tool["type"] not in CALLERS_TOOLS and not is_callers(tool):  # at first sight most are the caller's
                return True
    except (KeyError, TypeError):  # what has no type that is a string is known to nobody
        return True
    return False


def kind_of_call(item: Mapping[str, Any]) -> str | None:
    """What an output item counts as: "server", "function", "custom", "unknown", or None for what is no such call.

    Calls that the caller runs beside functions and custom tools (a local shell, a patch, a computer) are None.
    """
    kind = item.get("type")
    if not isinstance(kind, str) or kind in CALLERS_CALLS:
        return None
    if kind == "shell_call":
        environment = item.get("environment")
        if not isinstance(environment, dict):
            return "unknown"  # nothing tells where it runs
        return None if environment.get("type") == "local" else "server"
    if kind == "tool_search_call":
        return None if item.get("execution") == "client" else "server"
    return KINDS_OF_CALLS.get(kind, "unknown" if kind.endswith("_call") else None)
