"""The events inside an item, by item type."""

from typing import Any

import pytest

from proxy.wire.items import (
    JSON,
    closing_events,
    delta_event,
    empty_item,
    finished_item,
    inner_events,
    opening_events,
)

TEXT = {
    "type": "output_text",
    "text": "Hello.",
    "annotations": [{"type": "file_path"}],
    "logprobs": [{"token": "Hello."}],
}
REFUSAL = {"type": "refusal", "refusal": "No."}


def kinds(item: JSON) -> list[str]:
    """Return the types of an item's inner events, without their common prefix."""
    return [kind.removeprefix("response.") for kind, _ in inner_events(item)]


@pytest.mark.parametrize(
    ("item", "empty"),
    [
        ({"type": "message", "content": [TEXT]}, {"type": "message", "status": "in_progress", "content": []}),
        ({"type": "message", "role": "user"}, {"type": "message", "role": "user", "status": "in_progress", "content": []}),
        ({"type": "reasoning", "summary": ["a"]}, {"type": "reasoning", "summary": []}),
        ({"type": "reasoning", "status": "completed", "content": ["a"]}, {"type": "reasoning", "status": "in_progress", "content": []}),
        ({"type": "function_call", "arguments": "{}"}, {"type": "function_call", "status": "in_progress", "arguments": ""}),
        ({"type": "custom_tool_call", "input": "a"}, {"type": "custom_tool_call", "input": ""}),
        ({"type": "custom_tool_call", "status": "completed"}, {"type": "custom_tool_call", "status": "in_progress", "input": ""}),
        ({"type": "web_search_call", "status": "completed"}, {"type": "web_search_call", "status": "completed"}),
        ({"type": ["message"]}, {"type": ["message"]}),
        ({}, {}),
    ],
)  # fmt: skip
def test_an_item_begins_without_its_text(item: JSON, empty: JSON):
    """The finished item is not modified; an item of an unknown type begins as it ends."""
    before = dict(item)

    assert empty_item(item) == empty
    assert item == before


def test_a_message_has_events_for_each_part():
    """Text and refusals; each event has the index of its part."""
    events = inner_events({"type": "message", "content": [TEXT, {"type": "acme:part"}, REFUSAL]})

    assert events == [
        ("response.content_part.added", {"content_index": 0, "part": {"type": "output_text", "text": "", "annotations": [], "logprobs": []}}),
        ("response.output_text.delta", {"content_index": 0, "delta": "Hello.", "logprobs": TEXT["logprobs"]}),
        ("response.output_text.done", {"content_index": 0, "text": "Hello.", "logprobs": TEXT["logprobs"]}),
        ("response.content_part.done", {"content_index": 0, "part": TEXT}),
        ("response.content_part.added", {"content_index": 2, "part": {"type": "refusal", "refusal": ""}}),
        ("response.refusal.delta", {"content_index": 2, "delta": "No."}),
        ("response.refusal.done", {"content_index": 2, "refusal": "No."}),
        ("response.content_part.done", {"content_index": 2, "part": REFUSAL}),
    ]  # fmt: skip


def test_reasoning_has_its_summary_before_its_content():
    """A summary part has an index of its own kind, and parts in the wrong field have no events."""
    summary, text = {"type": "summary_text", "text": "a"}, {"type": "reasoning_text", "text": "b"}
    item = {"type": "reasoning", "content": [text, summary], "summary": [summary]}

    assert [(kind.removeprefix("response."), data.get("summary_index"), data.get("content_index")) for kind, data in inner_events(item)] == [
        ("reasoning_summary_part.added", 0, None),
        ("reasoning_summary_text.delta", 0, None),
        ("reasoning_summary_text.done", 0, None),
        ("reasoning_summary_part.done", 0, None),
        ("content_part.added", None, 0),
        ("reasoning_text.delta", None, 0),
        ("reasoning_text.done", None, 0),
        ("content_part.done", None, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "events"),
    [
        (
            {"type": "function_call", "name": "f", "arguments": "{}"},
            [
                ("response.function_call_arguments.delta", {"delta": "{}"}),
                ("response.function_call_arguments.done", {"name": "f", "arguments": "{}"}),
            ],
        ),
        (
            {"type": "custom_tool_call", "name": "c", "input": "a"},
            [
                ("response.custom_tool_call_input.delta", {"delta": "a"}),
                ("response.custom_tool_call_input.done", {"input": "a"}),
            ],
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else None,
)
def test_calls_have_the_events_of_their_string(item: JSON, events: Any):
    """Only those of functions repeat the name."""
    assert inner_events(item) == events


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": 1}])
def test_a_text_of_another_type_is_empty_in_the_events(value: object):
    """Clients require strings; the finished item has the value as it is."""
    texts = [
        data[name]
        for item in (
            {"type": "function_call", "arguments": value},
            {"type": "custom_tool_call", "input": value},
            {
                "type": "message",
                "content": [{"type": "output_text", "text": value}, {"type": "refusal", "refusal": value}],
            },
        )
        for _, data in inner_events(item)
        for name in ("delta", "text", "arguments", "input", "refusal")
        if name in data
    ]

    assert texts == [""] * 8


@pytest.mark.parametrize("item", [{"type": "web_search_call"}, {"type": "acme:beep"}, {"type": None}, {}])
def test_other_items_have_no_inner_events(item: JSON):
    """They begin and end in one piece."""
    assert inner_events(item) == []


@pytest.mark.parametrize(
    ("kind", "opening", "delta", "done"),
    [
        ("message", ["content_part.added"], "output_text.delta", ["output_text.done", "content_part.done"]),
        ("reasoning", ["content_part.added"], "reasoning_text.delta", ["reasoning_text.done", "content_part.done"]),
        ("function_call", [], "function_call_arguments.delta", ["function_call_arguments.done"]),
        ("custom_tool_call", [], "custom_tool_call_input.delta", ["custom_tool_call_input.done"]),
    ],
)
def test_a_streamed_item_has_the_events_of_a_finished_one(kind: str, opening: list[str], delta: str, done: list[str]):
    """Streamed piece by piece it has the same events in the same order as when it is already finished."""
    item: JSON = {"type": kind, "summary": [], "content": []}
    finished = finished_item(item, "ab", [])
    streamed = [*opening_events(item), delta_event(item, "ab", []), *closing_events(finished)]

    assert [name.removeprefix("response.") for name, _ in streamed] == [*opening, delta, *done] == kinds(finished)
    assert streamed == inner_events(finished)


def test_logprobs_belong_to_messages_only():
    """Other items have no field for them."""
    logprobs = [{"token": "a"}]

    assert delta_event({"type": "message"}, "a", logprobs)[1]["logprobs"] == logprobs
    assert finished_item({"type": "message"}, "a", logprobs)["content"][0]["logprobs"] == logprobs
    assert "logprobs" not in delta_event({"type": "reasoning"}, "a", logprobs)[1]
    assert "logprobs" not in delta_event({"type": "function_call"}, "a", logprobs)[1]
