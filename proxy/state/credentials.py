"""Removes credentials of MCP servers from what the gateway keeps: a client sends them with each call.

They stand in tools of type `mcp`: in `tools` of a call or a response, in namespaces, and in items with tools.

Source: https://platform.openai.com/docs/guides/tools-connectors-mcp#authentication
"""

from collections.abc import Mapping, Sequence
from typing import Any

from policies.support.walk import plain_name

CREDENTIALS = frozenset({"authorization", "headers"})
TOOLS = "tools"
MCP = "mcp"


def without_credentials(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a response, an item or a namespace without the credentials in its tools; itself if it has none."""
    tools = holder.get(TOOLS)
    if not isinstance(tools, list):
        return holder
    cleaned = [_clean(tool) for tool in tools]
    is_same = all(new is old for new, old in zip(cleaned, tools, strict=True))
    return holder if is_same else {**holder, TOOLS: cleaned}


def items_without_credentials(items: Sequence[Any]) -> Sequence[Any]:
    """Return items without the credentials in their tools."""
    return [without_credentials(item) if isinstance(item, dict) else item for item in items]


def _clean(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return tool
    kind = tool.get("type")
    if not (isinstance(kind, str) and plain_name(kind) == MCP):
        return without_credentials(tool)
    kept = {name: value for name, value in tool.items() if plain_name(name) not in CREDENTIALS}
    return tool if len(kept) == len(tool) else kept
