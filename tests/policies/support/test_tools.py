"""Who runs a tool, what counts as a call, and names that resemble checked ones."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.support.tools import (
    find_lookalike,
    has_server_tools,
    kind_of_call,
    may_have_hidden_tools,
    plain_type,
)
from policies.support.walk import MAX_VALUES
from tests.examples import JSON, NO_DEADLINE

FUNCTION = {"type": "function", "name": "f"}


@pytest.mark.parametrize(
    "tool",
    [
        FUNCTION,
        {"type": "custom", "name": "c"},
        {"type": "local_shell"},
        {"type": "apply_patch"},
        {"type": "computer"},
        {"type": "computer_use"},
        {"type": "computer_use_preview", "display_width": 1},
        {"type": "shell", "environment": {"type": "local"}},
        {"type": "tool_search", "execution": "client"},
        {"type": "namespace", "name": "n", "tools": [FUNCTION, {"type": "custom"}]},
        {"type": "namespace", "name": "n", "tools": []},
    ],
    ids=lambda tool: tool["type"],
)
def test_the_caller_runs_its_own_tools(tool: Any):
    """The server runs nothing that the caller does not see."""
    assert has_server_tools({"tools": [tool]}) is False


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search"},
        {"type": "web_search_preview_2025_03_11"},
        {"type": "file_search"},
        {"type": "code_interpreter"},
        {"type": "image_generation"},
        {"type": "mcp", "server_label": "s"},
        {"type": "programmatic_tool_calling"},
        {"type": "shell"},
        {"type": "shell", "environment": {"type": "container_auto"}},
        {"type": "shell", "environment": "local"},
        {"type": "tool_search"},
        {"type": "tool_search", "execution": "server"},
        {"type": "namespace", "tools": [FUNCTION, {"type": "mcp"}]},
        {"type": "namespace", "tools": [FUNCTION, "mcp"]},
        {"type": "namespace", "tools": None},
        {"type": "namespace"},
        {"type": "acme:beep"},
        {"type": None},
        {"type": []},
        {"type": {}},
        {"type": "namespace", "tools": [{"type": ["function"]}]},
        {},
        "function",
        None,
        ["function"],
    ],
    ids=str,
)
def test_the_server_runs_all_other_tools(tool: Any):
    """An unknown tool, or one of an unexpected type, is taken for one that the server runs."""
    assert has_server_tools({"tools": [FUNCTION, tool]}) is True


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, False),
        ({"tools": None}, False),
        ({"tools": []}, False),
        ({"tools": [FUNCTION]}, False),
        ({"tools": {}}, True),
        ({"tools": "web_search"}, True),
        ({"tools": 0}, True),
        ({"prompt": {"id": "pmpt_1"}, "tools": [FUNCTION]}, True),
        ({"prompt": None, "tools": [FUNCTION]}, False),
        ({"tools": [FUNCTION], "input": [{"type": "additional_tools", "tools": [{"type": "mcp"}]}]}, True),
        ({"input": [{"type": "additional_tools", "role": "developer", "tools": [FUNCTION]}]}, False),
        ({"input": ["text", {"type": "tool_search_output", "tools": [{"type": "web_search"}]}]}, True),
        ({"input": [{"type": "additional_tools", "tools": "odd"}]}, True),
        ({"input": [{"type": "message", "content": "Hi"}, None, 7, []]}, False),
        ({"input": "tools"}, False),
        ({"input": {"tools": [{"type": "mcp"}]}}, True),
        ({"input": {"tools": [FUNCTION]}}, False),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "tools": [{"type": "mcp"}]}]}]}, True),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "Tools": [{"type": "mcp"}]}]}]}, True),
        ({"input": [{"type": "mcp_list_tools", "tools": [{"name": "find"}]}]}, False),
        ({"tools": [{"type": "function", "group": [{"tools": [{"type": "web_search"}]}]}]}, True),
        ({"tools": [{"type": "namespace", "tools": [{"type": "namespace", "tools": [FUNCTION]}]}]}, False),
        ({"tools": [{"type": "Function"}, {"type": "local-shell"}, {"type": "computerUse"}]}, False),
        ({"tools": [{"type": "function", "parameters": {"properties": {"tools": {"type": "array"}}}}]}, False),
        ({"chat_template_kwargs": {"tools": [{"type": "mcp"}]}}, True),
        ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "mcp"}]}}, False),
        ({"metadata": {"tools": "all"}}, False),
        ({"input": [[0], [0] * MAX_VALUES]}, True),
    ],
)
def test_tools_of_the_server_are_found_in_a_request(body: dict, expected: bool):
    """In `tools`, in a prompt template and in items of the input; `tools` of an unexpected type may be anything."""
    assert has_server_tools(body) is expected


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({"type": "function_call"}, "function"),
        ({"type": "custom_tool_call"}, "custom"),
        ({"type": "web_search_call"}, "server"),
        ({"type": "file_search_call"}, "server"),
        ({"type": "code_interpreter_call"}, "server"),
        ({"type": "image_generation_call"}, "server"),
        ({"type": "mcp_call"}, "server"),
        ({"type": "program"}, "server"),
        ({"type": "shell_call", "environment": {"type": "container_reference"}}, "server"),
        ({"type": "shell_call", "environment": {"type": "local"}}, None),
        ({"type": "shell_call", "environment": None}, "unknown"),
        ({"type": "shell_call"}, "unknown"),
        ({"type": "tool_search_call"}, "server"),
        ({"type": "tool_search_call", "execution": "server"}, "server"),
        ({"type": "tool_search_call", "execution": "client"}, None),
        ({"type": "local_shell_call"}, None),
        ({"type": "apply_patch_call"}, None),
        ({"type": "computer_call"}, None),
        ({"type": "acme:beep_call"}, "unknown"),
        ({"type": "browser_search_call"}, "unknown"),
        ({"type": "webSearchCall"}, "server"),
        ({"type": "MCP-CALL"}, "server"),
        ({"type": "FunctionCall"}, "function"),
        ({"type": "LocalShellCall"}, None),
        ({"type": "newSearchCall"}, "unknown"),
        ({"type": "message"}, None),
        ({"type": "reasoning"}, None),
        ({"type": "mcp_list_tools"}, None),
        ({"type": "mcp_approval_request"}, None),
        ({"type": "function_call_output"}, None),
        ({"type": "compaction"}, None),
        ({"type": None}, None),
        ({"type": ["mcp_call"]}, None),
        ({}, None),
    ],
    ids=str,
)
def test_an_output_item_is_a_call_of_one_kind(item: Any, kind: str | None):
    """The server runs what was measured to count for `max_tool_calls`."""
    assert kind_of_call(item) == kind


@NO_DEADLINE
@given(
    tool=JSON
    | st.dictionaries(
        st.sampled_from(["type", "tools", "environment", "execution"]),
        JSON | st.sampled_from(["namespace", "shell", "tool_search", "shell_call"]),
    ),
)
def test_any_json_is_a_tool_of_the_caller_or_of_the_server(tool: Any):
    """Callers and upstreams may send any JSON; none of it raises an error."""
    assert isinstance(has_server_tools({"tools": [tool]}), bool)
    assert not isinstance(tool, dict) or kind_of_call(tool) in ("server", "function", "custom", "unknown", None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, False),
        ({"model": "m", "input": "Hi", "tools": [FUNCTION], "stream": True}, False),
        ({"previous_response_id": None, "plugins": None}, False),
        ({"previous_response_id": "resp_1"}, True),
        ({"conversation": {"id": "conv_1"}}, True),
        ({"plugins": [{"id": "web"}]}, True),
    ],
)
def test_a_backend_may_run_tools_that_a_request_does_not_offer(body: dict, expected: bool):
    """Those of what it continues, and those of a field that the protocol does not have."""
    assert may_have_hidden_tools(body) is expected


@pytest.mark.parametrize(
    ("tool", "found"),
    [
        ({"type": "mcp", "server_url": "x", "name": "n", "parameters": {}}, None),
        ({"serverUrl": "x"}, "serverUrl"),
        ({"function": {"Name": "x"}}, "Name"),
        ({"custom": {"tool\u017f": []}}, "tool\\u017f"),
        ({"headers": {"serverUrl": "x"}}, None),
        ("serverUrl", None),
    ],
)
def test_a_field_that_resembles_a_checked_one_is_found(tool: Any, found: str | None):
    """It is returned in printable characters."""
    assert find_lookalike(tool) == found


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        ("web_search", "web_search"),
        ("webSearch", "web_search"),
        ("WEB_SEARCH", "web_search"),
        ("Web-Search", "web_search"),
        (" web  search ", "web_search"),
        ("MCPCall", "mcp_call"),
        ("\uff57ebSearch", "web_search"),
        ("web\u200bSearch", "web_search"),
        ("web_search_2025_08_26", "web_search_2025_08_26"),
        ("webSearch2025", "web_search_2025"),
        ("web__search", "web_search"),
        ("acme:beep_call", "acme:beep_call"),
        ("", ""),
    ],
)
def test_a_type_has_one_plain_spelling(kind: str, plain: str):
    """The protocol's own: lower case, underscores between words."""
    assert plain_type(kind) == plain
