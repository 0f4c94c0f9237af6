"""Instructions and input as messages for chat templates."""

import pytest

from backends.local.request.conversation import build_messages
from proxy.wire.errors import RequestError

CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "1"}


def message(role, content):
    return {"role": role, "content": content}


def test_a_string_becomes_one_user_message():
    assert [message("user", "Hi")] == build_messages({"input": "Hi"})


def test_instructions_become_the_first_system_message():
    assert [message("system", "Be kind."), message("user", "")] == build_messages(
        {"instructions": "Be kind.", "input": ""}
    )


def test_leading_system_messages_are_joined():
    """Instructions and leading items of system and developer; later ones stay where they are."""
    items = [message("developer", "B"), message("system", "C"), message("user", "D"), message("developer", "E")]

    assert [message("system", "A\n\nB\n\nC"), message("user", "D"), message("system", "E")] == build_messages(
        {
            "instructions": "A",
            "input": items,
        }
    )


def test_text_parts_are_joined():
    """Input, output and refusals."""
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": part} for part in "ab"]},
        {"role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"role": "assistant", "id": "msg_2", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": []},
    ]

    assert [message("user", "ab"), message("assistant", "c"), message("assistant", "no"), message("user", "")] == (
        build_messages({"input": items})
    )


def test_calls_are_added_to_the_assistant_message_that_made_them():
    """Text and calls of one turn are one message; arguments are an object, and results name their function."""
    second = CALL | {"call_id": "call_2", "arguments": ""}
    parts = [{"type": "input_text", "text": "2"}]
    items = [
        message("user", "Go"),
        message("assistant", "Wait."),
        CALL,
        second,
        OUTPUT,
        OUTPUT | {"call_id": "call_2", "output": parts},
    ]

    assert [
        message("user", "Go"),
        message("assistant", "Wait.")
        | {
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": {}}},
            ]
        },
        message("tool", "1") | {"tool_call_id": "call_1", "name": "f"},
        message("tool", "2") | {"tool_call_id": "call_2", "name": "f"},
    ] == build_messages({"input": items})


@pytest.mark.parametrize("arguments", ["{", "[1]", "1"])
def test_arguments_that_are_not_an_object_stay_text(arguments):
    """A call of another model may be invalid; it is passed unchanged."""
    found = build_messages({"input": [CALL | {"arguments": arguments}, OUTPUT]})

    assert arguments == found[0]["tool_calls"][0]["function"]["arguments"]


def test_unreadable_reasoning_is_ignored():
    """That of other models is encrypted, or has an unknown structure."""
    contents = [{"content": None}, {"content": "a"}, {"content": [1, {"text": 2}]}, {"encrypted_content": "x"}]
    items = [{"type": "reasoning", "id": f"rs_{index}", "summary": [], **each} for index, each in enumerate(contents)]

    assert [message("user", "Hi"), message("assistant", "Ho")] == build_messages(
        {"input": [message("user", "Hi"), *items, message("assistant", "Ho")]}
    )


def test_reasoning_is_added_to_the_assistant_message_after_it():
    """Or to its call; a user message in between discards it."""
    reasoning = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    beside_text, beside_call, discarded = (
        build_messages({"input": [reasoning, *items]})
        for items in ([message("assistant", "Ho")], [CALL, OUTPUT], [message("user", "Hi"), message("assistant", "Ho")])
    )

    assert [message("assistant", "Ho") | {"reasoning_content": "Hm."}] == beside_text
    assert beside_call[0]["reasoning_content"] == "Hm."
    assert [message("user", "Hi"), message("assistant", "Ho")] == discarded


def test_a_custom_tool_call_becomes_a_call_with_one_parameter():
    """The tool was presented to the model in this form."""
    call = {"type": "custom_tool_call", "call_id": "call_1", "name": "shell", "input": "ls"}
    found = build_messages(
        {"input": [call, {"type": "custom_tool_call_output", "call_id": "call_1", "output": "a.txt"}]}
    )

    assert found[0]["tool_calls"][0]["function"] == {"name": "shell", "arguments": {"input": "ls"}}
    assert message("tool", "a.txt") | {"tool_call_id": "call_1", "name": "shell"} == found[1]


def test_text_files_become_text():
    part = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,SGk="}

    assert [message("user", "a.txt:\nHi\n")] == build_messages({"input": [message("user", [part])]})


IMAGE = {"type": "input_image", "image_url": "data:"}


@pytest.mark.parametrize(
    ("body", "param", "message_part"),
    [
        ({}, "input", "Missing required parameter: 'input'."),
        ({"input": None, "instructions": "A"}, "input", "Missing required parameter: 'input'."),
        ({"input": []}, "input", "Missing required parameter: 'input'."),
        ({"input": 1}, "input", "expected a string or an array of objects, but got an integer instead"),
        ({"input": {"role": "user"}}, "input", "but got an object instead"),
        ({"input": ["Hi"]}, "input[0]", "expected an object, but got a string instead"),
        ({"input": [{}]}, "input[0].type", "Missing required parameter"),
        ({"input": [{"type": ["message"]}]}, "input[0].type", "but got an array instead"),
        ({"input": [{"type": "message"}]}, "input[0].role", "Missing required parameter"),
        ({"input": [message(["user"], "Hi")]}, "input[0].role", "but got an array instead"),
        ({"input": [message("tool", "Hi")]}, "input[0].role", "Invalid value: 'tool'"),
        ({"input": [message("user", None)]}, "input[0].content", "Missing required parameter"),
        ({"input": [message("user", 1.5)]}, "input[0].content", "but got a decimal number instead"),
        ({"input": [message("user", {"type": "input_text"})]}, "input[0].content", "but got an object instead"),
        ({"input": [message("user", ["Hi"])]}, "input[0].content[0]", "but got a string instead"),
        ({"input": [message("user", [{"text": "Hi"}])]}, "input[0].content[0].type", "Missing required parameter"),
        ({"input": [message("user", [{"type": "input_text"}])]}, "input[0].content[0].text", "Missing required"),
        (
            {"input": [message("user", [{"type": "input_text", "text": True}])]},
            "input[0].content[0].text",
            "but got a boolean instead",
        ),
        (
            {"input": [message("user", "A"), message("user", "B"), message("user", [IMAGE])]},
            "input[2].content[0]",
            "this model reads text ('input_text'), not 'input_image'",
        ),
        (
            {"input": [message("user", [{"type": "text", "text": "Hi"}])]},
            "input[0].content[0]",
            "this model reads text ('input_text'), not 'text'",
        ),
        (
            {"input": [CALL, OUTPUT | {"output": [IMAGE]}]},
            "input[1].output[0]",
            "reads text ('input_text'), not 'input_image'",
        ),
        ({"input": [CALL, OUTPUT | {"output": None}]}, "input[1].output", "Missing required parameter"),
        ({"input": [CALL | {"name": None}]}, "input[0].name", "Missing required parameter"),
        ({"input": [CALL | {"arguments": {"a": 1}}]}, "input[0].arguments", "but got an object instead"),
        ({"input": [CALL | {"call_id": 1}]}, "input[0].call_id", "but got an integer instead"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]", "not 'web_search_call'"),
        ({"input": [CALL]}, "input", "No tool output found for function call call_1."),
        ({"input": [OUTPUT]}, "input", "No tool call found for function call output with call_id call_1."),
        ({"input": [OUTPUT, CALL]}, "input", "No tool call found for function call output with call_id call_1."),
        ({"input": [CALL, OUTPUT, OUTPUT]}, "input", "No tool call found for function call output"),
        (
            {"input": [message("user", "A") | {"id": "msg_1"}] * 2},
            "input",
            "Duplicate item found with id msg_1. Remove duplicate items from your input and try again.",
        ),
        ({"input": [{"id": "msg_1"}]}, "input", "Item with id 'msg_1' not found."),
        ({"input": [{"type": "item_reference", "id": 1}]}, "input", "Item with id '1' not found."),
    ],
)
def test_unreadable_input_is_refused(body, param, message_part):
    """The error names the part and its fault."""
    with pytest.raises(RequestError) as refused:
        build_messages(body)

    assert param == refused.value.param
    assert message_part in refused.value.message


def test_a_call_of_a_tool_in_a_namespace_has_a_flat_name():
    """The name by which the model knows the tool."""
    call = {"type": "function_call", "call_id": "c", "namespace": "crm", "name": "find", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "Ann"}
    messages = build_messages({"input": [call, output]})

    assert [messages[0]["tool_calls"][0]["function"]["name"], messages[1]["name"]] == ["crm__find"] * 2


ENCRYPTED = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAAB"}
FILE = {"type": "input_file", "file_id": "file_1"}


@pytest.mark.parametrize(
    ("items", "messages", "ignored"),
    [
        (
            [
                message("user", [{"type": "input_text", "text": "What is this? "}, IMAGE]),
                message("assistant", "A cat."),
                message("user", "Sure?"),
            ],
            [
                message("user", "What is this? [input_image omitted]"),
                message("assistant", "A cat."),
                message("user", "Sure?"),
            ],
            ["input.input_image"],
        ),
        (
            [message("user", [FILE]), message("user", "Sure?")],
            [message("user", "[input_file omitted]"), message("user", "Sure?")],
            ["input.input_file"],
        ),
        (
            [
                message("user", "A"),
                {"type": "web_search_call", "id": "ws_1"},
                message("assistant", "B"),
                message("user", "C"),
            ],
            [message("user", "A"), message("assistant", "[web_search_call omitted]\n\nB"), message("user", "C")],
            ["input.web_search_call"],
        ),
        (
            [
                message("user", "A"),
                message("assistant", "B"),
                {"type": "mcp_call"},
                {"type": "zzz"},
                message("user", "C"),
            ],
            [
                message("user", "A"),
                message("assistant", "B\n\n[mcp_call omitted]\n\n[zzz omitted]"),
                message("user", "C"),
            ],
            ["input.mcp_call", "input.zzz"],
        ),
        (
            [
                message("user", "A"),
                {"type": "local_shell_call", "call_id": "c"},
                {"type": "local_shell_call_output", "id": "c"},
                message("user", "B"),
            ],
            [
                message("user", "A"),
                message("assistant", "[local_shell_call omitted]\n\n[local_shell_call_output omitted]"),
                message("user", "B"),
            ],
            ["input.local_shell_call", "input.local_shell_call_output"],
        ),
        (
            [{"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAAAAB"}, message("user", "A")],
            [message("assistant", "[compaction omitted]"), message("user", "A")],
            ["input.compaction"],
        ),
        (
            [message("user", "A"), ENCRYPTED, message("assistant", "B"), message("user", "C")],
            [message("user", "A"), message("assistant", "B"), message("user", "C")],
            ["input.reasoning.encrypted_content"],
        ),
        (
            [message("user", "A"), message("critic", "B"), message("assistant", "C"), message("user", "D")],
            [message("user", "A"), message("assistant", "[message.critic omitted]\n\nC"), message("user", "D")],
            ["input.message.critic"],
        ),
    ],
)
def test_a_history_of_another_model_is_read_with_placeholders(items, messages, ignored):
    """What cannot be read is named, and the chat goes on."""
    names: list[str] = []

    assert build_messages({"input": items}, ignored=names) == messages
    assert names == ignored


def test_an_old_result_that_cannot_be_read_becomes_a_placeholder():
    """It keeps its call."""
    names: list[str] = []
    items = [message("user", "A"), CALL, OUTPUT | {"output": [IMAGE]}, message("user", "B")]

    assert build_messages({"input": items}, ignored=names)[2]["content"] == "[input_image omitted]"
    assert names == ["input.input_image"]


def test_calls_of_servers_within_the_last_turn_become_placeholders():
    """A loop of tools that another model began can be continued."""
    items = [message("user", "A"), {"type": "web_search_call"}, CALL, OUTPUT, {"type": "mcp_call"}]
    found = build_messages({"input": items})

    assert [each["role"] for each in found] == ["user", "assistant", "tool", "assistant"]
    assert (found[1]["content"], found[3]["content"]) == ("[web_search_call omitted]", "[mcp_call omitted]")


@pytest.mark.parametrize(
    "items",
    [
        [message("user", "A"), message("user", [IMAGE])],
        [message("user", "A"), message("user", [FILE])],
        [message("user", "A"), CALL, OUTPUT | {"output": [IMAGE]}],
        [message("user", "A"), {"type": "zzz"}],
        [message("user", "A"), {"type": "computer_call_output", "output": {}}],
        [message("user", [{"type": "input_text"}]), message("user", "A")],
        [message("user", [{}]), message("user", "A")],
    ],
)
def test_what_the_last_question_needs_is_refused(items):
    """And what is malformed, wherever it is."""
    with pytest.raises(RequestError):
        build_messages({"input": items})


def test_a_summary_stands_for_reasoning_that_cannot_be_read():
    """A template that shows reasoning shows it."""
    summary = [{"type": "summary_text", "text": "Counted."}]
    items = [message("user", "A"), ENCRYPTED | {"summary": summary}, message("assistant", "B"), message("user", "C")]

    assert build_messages({"input": items})[1]["reasoning_content"] == "Counted."


@pytest.mark.parametrize(("index", "place"), [(0, "history[0]"), (1, "history[1]"), (2, "input[0]"), (3, "input[1]")])
def test_errors_count_the_caller_s_own_items(index, place):
    """The gateway put two items before them."""
    items = [message("user", "A") for _ in range(4)]
    items[index] = message(["tool"], "A")
    with pytest.raises(RequestError) as refused:
        build_messages({"input": items}, history_items=2)

    assert refused.value.param == f"{place}.role"


def test_items_that_add_tools_are_no_messages():
    """The tools are read elsewhere."""
    given = [{"type": "additional_tools", "role": "developer", "tools": []}, message("user", "Hi")]

    assert build_messages({"input": given}) == [{"role": "user", "content": "Hi"}]
