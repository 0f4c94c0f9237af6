"""Who runs a tool: the caller, or the server while it makes its response."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.tools import has_server_tools, is_callers, kind_of_call
from tests import values

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
    """Nothing happens behind the gate that the caller does not see."""
    assert is_callers(tool) is True
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
def test_all_other_tools_are_the_servers(tool: Any):
    """What nobody knows is counted on the safe side."""
    assert is_callers(tool) is False
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
        ({"input": {"tools": [{"type": "mcp"}]}}, False),
    ],
)
def test_a_request_that_may_run_tools_on_the_servers_side(body: dict, expected: bool):
    """A prompt template and items of the input may bring tools, and tools of an odd shape may be anything."""
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
def test_what_an_item_counts_as(item: Any, kind: str | None):
    """What was measured to count for `max_tool_calls` is the server's; what the caller runs is not."""
    assert kind_of_call(item) == kind


@values.PATIENT
@given(
    tool=values.JSON
    | st.dictionaries(
        st.sampled_from(["type", "tools", "environment", "execution"]),
        values.JSON | st.sampled_from(["namespace", "shell", "tool_search", "shell_call"]),
    ),
)
def test_no_shape_breaks_the_count(tool: Any):
    """Callers and upstreams write what they like."""
    assert has_server_tools({"tools": [tool]}) is not is_callers(tool)
    assert not isinstance(tool, dict) or kind_of_call(tool) in ("server", "function", "custom", "unknown", None)
