"""Composed responses, checked by the strictest clients: three published schemas, the SDK's types, the SDK's helper."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAIError
from pydantic import ValidationError

from proxy.wire.compose import Composer, events_of, in_runs, new_id, response_object, typed_response, usage
from proxy.wire.event import FOLLOWED, Event
from proxy.wire.items import JSON
from tests import examples
from tests.wire.contract import event_faults, frames_faults, order_faults, read_with_sdk, response_faults, sdk_client
from tests.wire.streams import data_of

USED = usage(input_tokens=5, output_tokens=7, cached_tokens=2, reasoning_tokens=1)
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [
        {
            "type": "output_text",
            "text": "See there.",
            "annotations": [
                {"type": "url_citation", "start_index": 0, "end_index": 3, "url": "https://a.example", "title": "A"}
            ],
            "logprobs": [{"token": "See", "bytes": [83, 101, 101], "logprob": -0.5, "top_logprobs": []}],
        },
        {"type": "refusal", "refusal": "No more."},
    ],
}
CALL = {
    "id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1", "name": "weather",
    "arguments": '{"city":"Ulm"}',
}  # fmt: skip
CUSTOM = {"id": "ctc_1", "type": "custom_tool_call", "call_id": "call_2", "name": "patch", "input": "*** Begin"}
REASONING = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
SEARCH = {
    "id": "ws_1",
    "type": "web_search_call",
    "status": "completed",
    "action": {"type": "search", "query": "x", "queries": ["x"]},
}
UNKNOWN = {"type": "acme:beep", "id": "beep_1", "loud": None}


def in_progress(**fields: Any) -> JSON:
    return response_object({"model": "m", **fields}, response_id="resp_1", created_at=1_790_000_000)


def done(*items: JSON, **fields: Any) -> JSON:
    """Return a finished response with these items."""
    return (
        in_progress()
        | {"status": "completed", "completed_at": 1_790_000_001, "output": list(items), "usage": USED}
        | fields
    )


def faults(events: list[Event], *, unknown_items: bool = False) -> list[str]:
    """Return what is wrong with a composed stream."""
    data = [event.data for event in events]
    wrong = [] if unknown_items else [fault for event in data for fault in event_faults(event)]
    return frames_faults(events) + order_faults(data) + wrong


def known_faults(events: list[Event]) -> list[str]:
    """Return the faults of items that Open Responses leaves to extensions."""
    return [fault for fault in faults(events) if not fault.startswith("openresponses")]


def types(events: list[Event]) -> list[str]:
    return [event.type.removeprefix("response.") for event in events]


def test_ids_look_like_those_of_openai():
    """`resp_` and 48 hex digits; OpenAI refuses ids of more than 64 characters as input."""
    assert re.fullmatch(r"resp_[0-9a-f]{48}", new_id("resp"))
    assert new_id("msg") != new_id("msg")


def test_usage_has_every_detail():
    """Typed clients require each of them, also when it is zero."""
    assert usage(input_tokens=5, output_tokens=7) == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }
    assert USED["input_tokens_details"]["cached_tokens"] == 2
    assert USED["output_tokens_details"]["reasoning_tokens"] == 1


def test_a_response_object_has_the_keys_that_openai_sends():
    """Null where the value is unknown, never absent: strict clients require 31 keys."""
    response = in_progress()

    assert response_faults(response) == []
    assert {key for key, value in response.items() if value is None} == {
        "completed_at", "error", "incomplete_details", "instructions", "max_output_tokens", "max_tool_calls",
        "previous_response_id", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "usage", "user",
    }  # fmt: skip
    assert (response["status"], response["output"], response["metadata"], response["tools"]) == (
        "in_progress",
        [],
        {},
        [],
    )
    assert (response["temperature"], response["top_p"], response["store"]) == (1.0, 1.0, False)


def test_a_response_object_echoes_its_request():
    """Zero and false are values like any other."""
    request = {
        "temperature": 0, "top_p": 0.5, "top_logprobs": 0, "parallel_tool_calls": False, "instructions": "Be kind.",
        "max_output_tokens": 16, "max_tool_calls": 3, "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "previous_response_id": "resp_0", "truncation": "auto",
        "tool_choice": "none", "presence_penalty": 0.5, "frequency_penalty": -0.5,
    }  # fmt: skip
    response = response_object({"model": "m", **request}, response_id="resp_1", created_at=1, store=True)

    assert {key: response[key] for key in request} == request
    assert response_faults(response) == []
    assert response["store"] is True


def test_null_in_a_request_is_the_default_in_its_echo():
    """Clients require a number where the default is one."""
    names = [
        "temperature",
        "top_p",
        "tools",
        "tool_choice",
        "metadata",
        "text",
        "reasoning",
        "truncation",
        "top_logprobs",
    ]

    assert in_progress(**dict.fromkeys(names)) == in_progress()


def test_reasoning_and_text_are_echoed_with_all_their_keys():
    """The caller's values are kept, and missing keys have their default."""
    response = in_progress(reasoning={"effort": "low"}, text={"format": {"type": "json_object"}})

    assert response["reasoning"] == {"effort": "low", "summary": None}
    assert response["text"] == {"format": {"type": "json_object"}, "verbosity": "medium"}
    assert response_faults(response) == []


def test_functions_are_echoed_with_all_their_keys():
    """Strict clients require description, parameters and strict; other tools are echoed unchanged."""
    tools = [
        {"type": "function", "name": "f"},
        {"type": "function", "name": "g", "strict": False},
        {"type": "acme:x"},
        3,
    ]

    assert in_progress(tools=tools)["tools"] == [
        {"type": "function", "name": "f", "description": None, "parameters": None, "strict": False},
        {"type": "function", "name": "g", "description": None, "parameters": None, "strict": False},
        {"type": "acme:x"},
        3,
    ]
    assert response_faults(in_progress(tools=tools[:2])) == []


Step = tuple[Any, ...]


def compose(*steps: Step, incomplete: str | None = None, **fields: Any) -> tuple[list[Event], JSON]:
    """Return the events of a response that is composed in these steps, methods with their arguments, and the response."""
    composer = Composer(in_progress(**fields))
    events = [*composer.start()]
    for method, *arguments in steps:
        events += getattr(composer, method)(*arguments)
    events += composer.finish(USED, incomplete=incomplete)
    return events, composer.response


def test_a_composed_response_begins_and_ends():
    """Its item is in the output of the terminal event."""
    events, response = compose(("open_message",), ("delta", "Hello."))

    assert faults(events) == []
    assert [*types(events)[:2], types(events)[-1]] == ["created", "in_progress", "completed"]
    assert response["output"][0]["content"][0]["text"] == "Hello."
    assert (response["status"], response["usage"]) == ("completed", USED)
    assert response["completed_at"] >= response["created_at"] > 0


def texts(kind: str) -> list[str]:
    """Return the types of the events of a text in two deltas."""
    return [f"{kind}.delta", f"{kind}.delta", f"{kind}.done"]


@pytest.mark.parametrize(
    ("opened", "inner", "item"),
    [
        (("open_message",), ["content_part.added", *texts("output_text"), "content_part.done"], {"role": "assistant"}),
        (("open_function_call", "f"), texts("function_call_arguments"), {"name": "f", "arguments": "Hello."}),
        (("open_custom_call", "f"), texts("custom_tool_call_input"), {"name": "f", "input": "Hello."}),
        (("open_reasoning",), ["content_part.added", *texts("reasoning_text"), "content_part.done"],
         {"summary": [], "content": [{"type": "reasoning_text", "text": "Hello."}]}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_an_item_has_its_events_in_order(opened: Step, inner: list[str], item: JSON):
    """`added` before the deltas, and `done` after them; the done event of arguments has the name of the function."""
    events, response = compose(opened, ("delta", "Hel"), ("delta", "lo."))
    names = [event.data["name"] for event in events if event.type == "response.function_call_arguments.done"]

    assert known_faults(events) == []
    assert types(events)[2:-1] == ["output_item.added", *inner, "output_item.done"]
    assert response["output"][0] == response["output"][0] | item
    assert names == (["f"] if "arguments" in item else [])


def test_calls_have_the_namespace_of_their_tool():
    """Without a namespace the field is absent, not null."""
    composer = Composer(in_progress())
    events = [*composer.start(), *composer.open_function_call("f", namespace="crm")]
    events += [*composer.open_custom_call("c", namespace="crm"), *composer.open_function_call("g")]
    events += composer.finish(USED)

    assert known_faults(events) == []
    assert [item.get("namespace", "-") for item in composer.response["output"]] == ["crm", "crm", "-"]


def test_logprobs_accompany_their_text():
    """Each delta has those of its tokens, the finished part has all."""
    first, second = ({"token": word, "bytes": [72], "logprob": -0.5, "top_logprobs": []} for word in ("Hel", "lo."))
    events, response = compose(("open_message",), ("delta", "Hel", [first]), ("delta", "lo", [second]), ("delta", "."))
    by_type = {event.type: event.data["logprobs"] for event in events if "logprobs" in event.data}
    deltas = [event.data["logprobs"] for event in events if event.type == "response.output_text.delta"]

    assert faults(events) == []
    assert deltas == [[first], [second], []]
    assert by_type["response.output_text.done"] == [first, second]
    assert response["output"][0]["content"][0]["logprobs"] == [first, second]


def test_opening_an_item_closes_the_open_one():
    """A message and two calls have consecutive numbers."""
    calls = [("open_function_call", "weather"), ("delta", "Ulm"), ("open_function_call", "weather"), ("delta", "Bonn")]
    events, response = compose(("open_message",), ("delta", "Let me see."), *calls)

    assert faults(events) == []
    assert [item["type"] for item in response["output"]] == ["message", "function_call", "function_call"]
    assert [item["status"] for item in response["output"]] == ["completed"] * 3
    assert len({item["id"] for item in response["output"]}) == 3


def test_an_incomplete_response_has_a_reason_and_an_incomplete_item():
    """Only the item that was open is incomplete."""
    texts = [("open_message",), ("delta", "a"), ("open_message",), ("delta", "b")]
    events, response = compose(*texts, incomplete="max_output_tokens", max_output_tokens=16)

    assert faults(events) == []
    assert events[-1].type == "response.incomplete"
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None


def test_a_response_may_have_no_items():
    """Closing has no effect while no item is open."""
    composer = Composer(in_progress())
    events = [*composer.start(), *composer.close(), *composer.finish(None)]

    assert faults(events) == []
    assert types(events) == ["created", "in_progress", "completed"]


@pytest.mark.parametrize("opened", ["open_message", "open_reasoning", "open_function_call", "open_custom_call"])
def test_an_item_may_be_empty(opened: str):
    """An item without a delta has an empty text."""
    events, _ = compose((opened, *(["f"] if opened.endswith("call") else [])), ("close",))

    assert known_faults(events) == []


def test_a_delta_without_an_open_item_is_an_error():
    """The code that composes a response has a fault then."""
    with pytest.raises(ValueError, match="no item is open"):
        Composer(in_progress()).delta("a")


def test_events_do_not_change_after_they_were_sent():
    """Later events do not modify the data of earlier ones."""
    events, _ = compose(("open_message",), ("delta", "a"), ("item", CALL))

    assert [event.data for event in events] == [data_of(event.sse) for event in events]


async def test_the_sdk_accepts_a_composed_stream():
    """Its helper, the strictest client there is, builds the same response."""
    hello: list[Step] = [
        ("open_message",),
        ("delta", "Hel"),
        ("delta", "lo."),
        ("open_function_call", "f"),
        ("delta", "{}"),
    ]
    streams = [compose(*hello)[0], compose(*hello[:2], incomplete="max_output_tokens")[0]]
    async with sdk_client([b"".join(event.sse for event in events) for events in streams]) as client:
        received = [await read_with_sdk(client) for _ in streams]
    whole, cut = (events[-1].response for events in received)

    assert [[event.type for event in events] for events in received] == [
        [event.type for event in events] for events in streams
    ]
    assert (whole.output_text, whole.output[1].arguments) == ("Hello.", "{}")
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_a_finished_message_as_events():
    """Each part is added, sent in one delta and done; annotations and logprobs are those of the item."""
    response = done(MESSAGE)
    events = events_of(response)

    assert faults(events) == []
    assert types(events) == [
        "created", "in_progress", "output_item.added",
        "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "content_part.added", "refusal.delta", "refusal.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert events[3].data["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert events[6].data["part"] == MESSAGE["content"][0]
    assert events[5].data["logprobs"] == MESSAGE["content"][0]["logprobs"]
    assert events[-1].data["response"] == response


def test_items_of_several_types_as_events():
    """Messages, reasoning and calls have inner events."""
    response = done(REASONING, MESSAGE, CALL)
    events = events_of(response)

    assert faults(events) == []
    assert types(events)[2:8] == [
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
    ]  # fmt: skip
    assert events[2].data["item"] == REASONING | {"summary": []}
    assert types(events)[-6:] == [
        "output_item.done", "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.data["item"] for event in events if event.type == "response.output_item.done"] == response["output"]


def test_reasoning_as_events():
    """First its summaries, then its content, each part with its own index."""
    summaries = [{"type": "summary_text", "text": text} for text in ("Hm.", "So.")]
    item = REASONING | {"summary": summaries, "content": [{"type": "reasoning_text", "text": "Let me see."}]}
    events = events_of(done(item, MESSAGE))
    inner = [event for event in events if event.data.get("item_id") == "rs_1"]

    assert known_faults(events) == []
    assert events[2].data["item"] == item | {"summary": [], "content": []}
    assert types(inner) == [
        *["reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.done",
          "reasoning_summary_part.done"] * 2,
        "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
    ]  # fmt: skip
    assert [event.data["summary_index"] for event in inner[:8]] == [0] * 4 + [1] * 4
    assert [event.data["content_index"] for event in inner[8:]] == [0] * 4


def test_calls_of_custom_tools_as_events():
    """Their input is sent like the arguments of a function. An item without a status begins without one."""
    events = events_of(done(CUSTOM, CUSTOM | {"id": "ctc_2", "call_id": "call_3", "status": "completed"}))

    assert known_faults(events) == []
    assert types(events)[2:6] == [
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
    ]  # fmt: skip
    assert [events[2].data["item"], events[6].data["item"].get("status")] == [CUSTOM | {"input": ""}, "in_progress"]


def test_calls_of_hosted_tools_as_events():
    """They have no inner events in OpenAI's schemas; Open Responses leaves such items to extensions."""
    events = events_of(done(SEARCH, MESSAGE))

    assert known_faults(events) == []
    assert types(events)[2:4] == ["output_item.added", "output_item.done"]


def test_unknown_items_as_events():
    """They pass unchanged, nulls included."""
    events = events_of(done(UNKNOWN, MESSAGE))

    assert faults(events, unknown_items=True) == []
    assert events[2].data["item"] == events[3].data["item"] == UNKNOWN


def test_unknown_parts_of_a_message_have_no_events():
    """They are in the finished item only, and count for the index of the parts after them."""
    message = MESSAGE | {"content": [{"type": "acme:part"}, "odd", MESSAGE["content"][1]]}
    events = events_of(done(message))

    assert types(events)[3:-2] == ["content_part.added", "refusal.delta", "refusal.done", "content_part.done"]
    assert events[3].data["content_index"] == 2
    assert events[-2].data["item"] == message


@pytest.mark.parametrize(
    "item",
    [
        {"type": "message"},
        {"type": "message", "content": None},
        {"type": "message", "content": "Hello."},
        {"type": "message", "content": [None, {"type": "output_text"}, {"type": "refusal", "refusal": None}]},
        {"type": "function_call"},
        {"type": "function_call", "arguments": None},
        {"type": "function_call", "arguments": {"city": "Ulm"}},
        {"type": "custom_tool_call", "input": ["a"]},
        {"type": "reasoning"},
        {"type": "reasoning", "summary": None, "content": [{"type": ["reasoning_text"]}, {"type": "reasoning_text"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": 3}]},
        {"type": None},
        {},
    ],
)
def test_items_with_fields_of_other_types_pass_unchanged(item: JSON):
    """The finished item is the upstream's own; texts in the inner events are strings."""
    events = events_of(done(item))
    sent = [event.data for event in events]

    assert [data["sequence_number"] for data in sent] == list(range(len(sent)))
    assert sent[-2]["item"] == item
    assert sent[-1]["response"]["output"] == [item]
    assert all(
        isinstance(data[key], str) for data in sent for key in ("delta", "text", "arguments", "input") if key in data
    )


@pytest.mark.parametrize("output", [None, "none", {"a": 1}, [None, 3, "x"]])
def test_an_output_without_items_has_no_events(output: Any):
    """The terminal event has it unchanged."""
    events = events_of(done() | {"output": output})

    assert types(events) == ["created", "in_progress", "completed"]
    assert events[-1].data["response"]["output"] == output


@examples.NO_DEADLINE
@given(
    output=st.lists(
        st.dictionaries(
            st.sampled_from(["type", "content", "summary", "arguments", "input", "id", "text", "refusal"]),
            examples.JSON
            | st.sampled_from(["message", "reasoning", "function_call", "custom_tool_call", "output_text"])
            | st.lists(
                st.dictionaries(
                    st.sampled_from(["type", "text", "refusal", "logprobs"]),
                    examples.JSON | st.sampled_from(["output_text", "refusal", "reasoning_text", "summary_text"]),
                )
            ),
        )
    )
    | examples.JSON
)
def test_any_output_becomes_one_stream(output: Any):
    """Whatever JSON `output` is, there is one terminal event."""
    events = events_of({"id": "resp_1", "status": "completed", "output": output})

    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    assert [event.type for event in events].count("response.completed") == 1
    assert events[-1].data["response"]["output"] == output


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
def test_a_response_ends_in_the_event_of_its_status(status: str):
    """It begins empty and in progress, without the fields of its end."""
    details = {
        "incomplete": {"incomplete_details": {"reason": "max_output_tokens"}},
        "failed": {"error": {"code": "server_error", "message": "It broke."}},
    }
    response = done(MESSAGE) | {"status": status} | details.get(status, {})
    events = events_of(response)

    assert faults(events) == []
    assert events[-1].type == f"response.{status}"
    assert events[0].data["response"] == response | {
        "status": "in_progress", "output": [], "usage": None, "completed_at": None, "error": None, "incomplete_details": None,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's own, for items that it does not know
async def test_the_sdk_accepts_a_finished_response_as_events():
    """Its helper builds the same response as from a live stream."""
    response = done(REASONING, MESSAGE, CALL, UNKNOWN)
    async with sdk_client([b"".join(event.sse for event in events_of(response))]) as client:
        received = await read_with_sdk(client)

    assert received[-1].response.output_text == "See there."
    assert [item.type for item in received[-1].response.output] == [
        "reasoning",
        "message",
        "function_call",
        "acme:beep",
    ]
    assert received[-1].response.output[2].arguments == CALL["arguments"]


async def test_the_sdk_refuses_a_stream_with_a_gap():
    """These tests rely on it: a stream without `output_item.added` is refused."""
    events = events_of(done(MESSAGE))
    async with sdk_client([b"".join(event.sse for event in [*events[:2], *events[3:]])]) as client:
        with pytest.raises((RuntimeError, OpenAIError)):
            await read_with_sdk(client)


def test_the_contract_finds_missing_repeated_and_late_events():
    """These tests rely on it. Two things are allowed.

    `response.in_progress` is optional, and the end of a part or an item may follow the beginning of the next.
    """
    sent = [event.data for event in events_of(done(MESSAGE, CALL))]
    left_out = [[*sent[:i], *sent[i + 1 :]] for i in range(len(sent))]
    twice = [[*sent[: i + 1], *sent[i:]] for i in range(len(sent))]
    late = [[*sent[:i], sent[i + 1], sent[i], *sent[i + 2 :]] for i in range(len(sent) - 1)]

    def accepted(streams: list[list[Any]]) -> list[int]:
        numbered = [[data | {"sequence_number": n} for n, data in enumerate(stream)] for stream in streams]
        return [i for i, stream in enumerate(numbered) if not order_faults(stream)]

    assert accepted([sent]) == [0]
    assert accepted(left_out) == accepted(twice) == [1]
    assert [sent[i]["type"] for i in accepted(late)] == [
        "response.in_progress",
        "response.content_part.done",
        "response.output_item.done",
    ]


@pytest.mark.parametrize("change", [{"item_id": 3}, {"delta": None}, {"output_index": "0"}, {"logprobs": None}])
def test_the_contract_finds_fields_of_another_type(change: JSON):
    """The schemas and the SDK's types refuse them."""
    delta = next(event.data for event in events_of(done(MESSAGE)) if event.type == "response.output_text.delta")

    assert event_faults(delta) == []
    with pytest.raises(ValidationError):
        event_faults(delta | change)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": None, "tool_choice": None, "parallel_tool_calls": None, "created_at": None},
        {"usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}},
        {"usage": {"input_tokens": 3, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 2}}},
        {"usage": {"input_tokens": 3, "output_tokens": 4, "output_tokens_details": None, "input_tokens_details": 5}},
        {"usage": {}},
    ],
)
def test_events_of_a_small_response_have_what_typed_clients_require(fields: JSON):
    """Some servers answer with few fields; the SDK's types read the events strictly."""
    events = events_of({"id": "resp_1", "status": "completed", "output": [MESSAGE], "model": "m", **fields})
    for event in events:
        event_faults(event.data)  # raises where the types do not match
    final = events[-1].data["response"]

    assert final["output"] == [MESSAGE]
    assert "usage" not in fields or final["usage"]["input_tokens_details"]["cache_write_tokens"] == 0


def test_values_that_a_response_has_are_not_changed():
    """Nor are fields that it does not need."""
    usage_given = {"input_tokens": 3, "output_tokens": "4", "input_tokens_details": {"cached_tokens": 2, "zzz": 1}}
    final = events_of({"id": "resp_1", "status": "completed", "usage": usage_given, "zzz": None})[-1].data["response"]

    assert final["zzz"] is None
    assert final["usage"] == usage_given | {
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0, "zzz": 1},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    assert "usage" not in events_of({"id": "resp_1", "status": "completed"})[-1].data["response"]


def test_events_that_nothing_follows_are_runs():
    """Neighbours are one run, and every frame is in its place."""
    composer = Composer(response_object({"model": "m"}, response_id="resp_1", created_at=1))
    events = [*composer.open_message(), *composer.delta("a"), *composer.delta("b"), *composer.close()]
    batch = in_runs(events, FOLLOWED)

    assert [unit.type for unit in batch] == ["response.output_item.added", "", "response.output_item.done"]
    assert b"".join(unit.sse for unit in batch) == b"".join(event.sse for event in events)
    assert batch[0] is events[0]


@pytest.mark.parametrize("open_item", ["open_message", "open_reasoning", "open_function_call", "open_custom_call"])
@pytest.mark.parametrize("text", ["a", "", '"\n\\', "ü\U0001f600"])
def test_an_encoded_delta_is_the_same_event(open_item: str, text: str):
    """Of items of all types, with the numbers that the events would have; the item is the same afterwards."""
    encoded, events = (Composer(response_object({"model": "m"}, response_id="resp_1", created_at=1)) for _ in range(2))
    name = () if open_item in ("open_message", "open_reasoning") else ("f",)
    opened = [getattr(composer, open_item)(*name) for composer in (encoded, events)]
    ids = [each[0].data["item"]["id"].encode() for each in opened]
    runs = [encoded.delta_run(each).sse.replace(*ids) for each in ("x", text, "y")]

    assert runs == [event.sse for each in ("x", text, "y") for event in events.delta(each)]
    closed = [composer.close() for composer in (encoded, events)]
    assert closed[0][0].sse.replace(*ids) == closed[1][0].sse
    assert b"sequence_number" in closed[0][0].sse


def test_a_delta_that_a_policy_follows_stays_an_event():
    """It is what the policy's check receives."""
    composer = Composer(response_object({"model": "m"}, response_id="resp_1", created_at=1))
    events = [*composer.open_message(), *composer.delta("a")]

    assert in_runs(events, FOLLOWED | {"response.output_text.delta"})[-1] is events[-1]
    assert in_runs([], FOLLOWED) == []


def test_what_a_server_leaves_out_is_empty():
    """Of the fields that typed clients require; what the response has stays."""
    response = typed_response({"id": "resp_1", "model": None, "own": 1})

    assert response == {
        "output": [], "id": "resp_1", "object": "response", "created_at": 0, "model": "", "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": [], "own": 1,
    }  # fmt: skip
