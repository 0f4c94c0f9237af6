"""Tokens as events."""

from collections.abc import Sequence

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from backends.local.answer import Answer
from backends.local.decoding.job import DecodingOptions as Options
from backends.local.decoding.job import Token
from backends.local.model.tokens import Tokens
from backends.local.request import Request
from backends.local.request.choice import tools_of
from backends.local.speech import Thinking
from backends.local.speech.hermes import HERMES
from tests.models import END, make_tokenizer
from tests.wire.contract import event_faults, frames_faults, order_faults, response_faults

TOKENIZER = make_tokenizer(["</tool_call> and more"])
TOKENS = Tokens(TOKENIZER)
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
PATCH_HEAD = '<tool_call>\n{"name": "patch", "input":\n'
THOUGHT = "<think>\nLet me see.\n</think>\n\n"
F = {"type": "function", "name": "f"}
NOTE = {"type": "custom", "name": "note"}
PATCH = {
    "type": "custom",
    "name": "patch",
    "format": {"type": "grammar", "syntax": "regex", "definition": "[^#]*"},
}
CRM = {"type": "namespace", "name": "crm", "description": "People.", "tools": [F, NOTE]}


class Spoken:
    """A generation that has happened: the tokens of a text, so many at each step."""

    def __init__(self, text, *, at_once=1, finish="stop", cached_tokens=0):
        ids = TOKENIZER.encode(text).ids
        self.tokens = [Token(number, -0.5, [(number, -0.5), (0, -2.0)]) for number in ids]
        self.finish = finish
        self.cached_tokens = cached_tokens
        self.count = len(ids)
        self.heard = 0
        self._at_once = at_once

    async def __aiter__(self):
        for start in range(0, self.count, self._at_once):
            tokens = self.tokens[start : start + self._at_once]
            self.heard += len(tokens)
            yield tokens


async def batches_of(spoken, *tools, thinks=False, begun=False, stops=(), top_logprobs=None, grammar="", **body):
    """Each batch of events; all of them obey the strictest readers."""
    body = {"model": "tiny", "temperature": 0.0, "tools": list(tools), **body}
    request = Request(
        [1, 2, 3], Options(9, frozenset(), top_logprobs=top_logprobs, grammar=grammar), body, tools_of(body, form=HERMES),
        Thinking() if thinks else None, begun, stops,
    )  # fmt: skip
    batches = [list(batch) async for batch in Answer(request, TOKENS).batches(spoken)]
    events = [event for batch in batches for event in batch]
    told = [event.data for event in events]
    known = [fault for event in told for fault in event_faults(event) if not fault.startswith("openresponses")]

    assert frames_faults(events) + order_faults(told) + known == []
    return batches


async def response_of(spoken, *tools, **more):
    return (await batches_of(spoken, *tools, **more))[-1][-1].data["response"]


def outputs(response):
    """Of each item its type, its status and its text."""
    return [
        (
            item["type"],
            item["status"],
            item.get("arguments", item.get("input")) if "call_id" in item else item["content"][0]["text"],
        )
        for item in response["output"]
    ]


async def test_every_token_is_a_delta_as_soon_as_it_is_there():
    """What one step brings goes out in one batch."""
    batches: list[Sequence] = await batches_of(Spoken("Hello there", at_once=2))
    deltas = [event for batch in batches for event in batch if event.type == "response.output_text.delta"]

    assert [
        ["response.created", "response.in_progress"],
        ["response.output_item.added", "response.content_part.added", *["response.output_text.delta"] * 2],
    ] == [[event.type for event in batch] for batch in batches[:2]]
    assert "".join(event.data["delta"] for event in deltas) == "Hello there"
    assert {tuple(event.data["logprobs"]) for event in deltas} == {()}
    assert [event.type for event in batches[-1]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_the_final_response_is_whole():
    """Its text, what it was made with, and what it cost."""
    spoken = Spoken("Hello there", cached_tokens=2)
    response = await response_of(spoken)

    assert response_faults(response) == []
    assert outputs(response) == [("message", "completed", "Hello there")]
    assert (response["status"], response["temperature"], response["store"]) == ("completed", 0.0, False)
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": spoken.count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 3 + spoken.count,
    }


async def test_an_answer_that_met_its_limit_is_incomplete():
    """And says why."""
    response = await response_of(Spoken("Hello th", finish="length"))

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert outputs(response) == [("message", "incomplete", "Hello th")]


async def test_calls_are_items_of_their_own():
    """Between texts, in the order in which they were made."""
    response = await response_of(Spoken(f"Wait.\n{CALL}\n{CALL} Done."), F)

    assert outputs(response) == [
        ("message", "completed", "Wait."),
        ("function_call", "completed", '{"a": 1}'),
        ("function_call", "completed", '{"a": 1}'),
        ("message", "completed", "Done."),
    ]
    assert len({item["call_id"] for item in response["output"] if item["type"] == "function_call"}) == 2


async def test_calls_of_custom_tools_are_items_too():
    """Whether their text comes in JSON or as it stands."""
    note = '<tool_call>{"name": "note", "arguments": {"input": "a\\nb"}}</tool_call>'
    response = await response_of(Spoken(f"{note}\n{PATCH_HEAD}a {{b}}</tool_call>"), NOTE, PATCH)

    assert outputs(response) == [
        ("custom_tool_call", "completed", "a\nb"),
        ("custom_tool_call", "completed", "a {b}</tool_call>"),
    ]
    assert [item["name"] for item in response["output"]] == ["note", "patch"]


async def test_calls_of_tools_in_a_namespace_say_both_names():
    """As the caller knows them, not as the model does."""
    said = "".join(f'<tool_call>{{"name": "crm__{name}", "arguments": {{"input": ""}}}}' for name in ("f", "note"))
    response = await response_of(Spoken(said), CRM)

    assert [(item["type"], item["name"], item["namespace"]) for item in response["output"]] == [
        ("function_call", "f", "crm"),
        ("custom_tool_call", "note", "crm"),
    ]


@pytest.mark.parametrize("body", [{"parallel_tool_calls": False}, {"tool_choice": {"type": "function", "name": "f"}}])
async def test_one_call_may_be_all_that_was_asked_for(body):
    """What would follow is neither given nor waited for; the response is complete, also when the limit is near."""
    alone, followed = Spoken(CALL), Spoken(f"{CALL}\n{CALL}", finish="length")
    responses = [await response_of(spoken, F, **body) for spoken in (alone, followed)]

    assert [outputs(response) for response in responses] == [[("function_call", "completed", '{"a": 1}')]] * 2
    assert [response["status"] for response in responses] == ["completed"] * 2
    assert [alone.heard, followed.heard] == [response["usage"]["output_tokens"] for response in responses]
    assert followed.heard < alone.count


@pytest.mark.parametrize("more", [f" and {CALL}", " and more"])
async def test_one_call_also_ends_a_batch_of_many(more):
    """And a token that says more than the call's last tag."""
    response = await response_of(Spoken(CALL + more, at_once=1000), F, parallel_tool_calls=False)

    assert outputs(response) == [("function_call", "completed", '{"a": 1}')]


async def test_without_functions_there_are_no_calls():
    """What looks like one is text."""
    assert outputs(await response_of(Spoken(CALL))) == [("message", "completed", CALL)]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("<tool_call>\n{", ("message", "incomplete", "<tool_call>\n{")),
        ('<tool_call>\n{"name": "f", "arguments": {"a"', ("function_call", "incomplete", '{"a"')),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}', ("function_call", "completed", '{"a": 1}')),
        ('<tool_call>{"name": "note", "arguments": {"input": "a', ("custom_tool_call", "incomplete", "a")),
        (PATCH_HEAD + "a b", ("custom_tool_call", "incomplete", "a b")),
    ],
)
async def test_a_call_that_was_cut_off_is_incomplete(said, expected):
    """As OpenAI gives it: what there is of its arguments, which is never whole JSON. Before its name is known: text."""
    response = await response_of(Spoken(said, finish="length"), F, NOTE, PATCH)

    assert response["status"] == "incomplete"
    assert outputs(response) == [expected]


@pytest.mark.parametrize("one", [False, True])
async def test_arguments_that_a_grammar_makes_are_told_as_they_come(one):
    """Token by token; without a grammar only when they are known to be good."""
    body = {"tool_choice": {"type": "function", "name": "f"}} if one else {}
    batches = await batches_of(Spoken(CALL if one else f"Hi.\n{CALL}"), F, grammar="any", **body)
    events = [event for batch in batches for event in batch]
    deltas = [event.data["delta"] for event in events if event.type == "response.function_call_arguments.delta"]
    late = await batches_of(Spoken(CALL), F)

    assert "".join(deltas) == '{"a": 1}'
    assert len(deltas) > 3
    assert outputs(events[-1].data["response"])[-1] == ("function_call", "completed", '{"a": 1}')
    assert [event.data["delta"] for batch in late for event in batch if "arguments.delta" in event.type] == ['{"a": 1}']


async def test_the_text_of_a_raw_call_is_told_as_it_comes():
    """It is nothing but what the model says."""
    batches = await batches_of(Spoken(PATCH_HEAD + "a b c d"), PATCH, grammar="any")
    deltas = [event.data["delta"] for batch in batches for event in batch if "input.delta" in event.type]

    assert "".join(deltas) == "a b c d"
    assert len(deltas) > 3


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"a"', ("function_call", "incomplete", '{"a"')),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}', ("function_call", "completed", '{"a": 1}')),
        ('<tool_call>{"name": "note", "arguments": {"input": "a', ("custom_tool_call", "incomplete", "a")),
        (PATCH_HEAD, ("custom_tool_call", "incomplete", "")),
    ],
)
async def test_a_call_that_was_cut_off_while_it_was_told_is_incomplete(said, expected):
    """With what was told of it."""
    response = await response_of(Spoken(said, finish="length"), F, NOTE, PATCH, grammar="any")

    assert (response["status"], outputs(response)) == ("incomplete", [expected])


async def test_half_a_call_of_a_model_that_ended_is_text():
    """It was not cut off; nothing more will come of it."""
    said = '<tool_call>\n{"name": "f", "arguments": {"a"'

    assert outputs(await response_of(Spoken(said), F)) == [("message", "completed", said)]


async def test_thoughts_are_items_of_their_own():
    """Before the answer, counted among its tokens."""
    spoken = Spoken(f"{THOUGHT}Oslo.")
    batches = await batches_of(spoken, thinks=True)
    response = batches[-1][-1].data["response"]
    thought, rest = TOKENIZER.encode(THOUGHT.rstrip()).ids, response["usage"]["output_tokens_details"]

    assert outputs(response) == [("reasoning", "completed", "Let me see."), ("message", "completed", "Oslo.")]
    assert response["output"][0]["summary"] == []
    assert (rest["reasoning_tokens"], response["usage"]["output_tokens"]) == (len(thought), spoken.count)
    assert len([event for batch in batches for event in batch if event.type == "response.reasoning_text.delta"]) > 3


async def test_a_thought_may_have_begun_in_the_prompt():
    """Then the answer begins within it."""
    response = await response_of(Spoken("Let me see.</think>Oslo."), thinks=True, begun=True)

    assert outputs(response) == [("reasoning", "completed", "Let me see."), ("message", "completed", "Oslo.")]


async def test_thoughts_and_calls_go_together():
    """A call may be all that follows a thought."""
    response = await response_of(Spoken(THOUGHT + CALL), F, thinks=True)

    assert outputs(response) == [("reasoning", "completed", "Let me see."), ("function_call", "completed", '{"a": 1}')]


async def test_a_thought_that_was_cut_off_is_incomplete():
    """Nothing follows it: only the last item of a response may be incomplete."""
    response = await response_of(Spoken("<think>Let me", finish="length"), thinks=True)

    assert (response["status"], outputs(response)) == ("incomplete", [("reasoning", "incomplete", "Let me")])


@pytest.mark.parametrize("text", ["", END])
async def test_an_answer_of_nothing_is_an_empty_message(text):
    """Readers take the first item's text."""
    assert outputs(await response_of(Spoken(text), F)) == [("message", "completed", "")]


async def test_a_model_that_only_thought_has_an_empty_message():
    """There is an answer, though nothing is in it."""
    response = await response_of(Spoken("<think>Hm.</think>"), thinks=True)

    assert outputs(response) == [("reasoning", "completed", "Hm."), ("message", "completed", "")]


async def test_a_stop_string_ends_the_answer():
    """It is complete, whatever the model would have said; the string itself is not part of it."""
    spoken = Spoken("One. Two. Three. Four.", finish="length")
    response = await response_of(spoken, stops=(". Th", "none"))

    assert (response["status"], outputs(response)) == ("completed", [("message", "completed", "One. Two")])
    assert spoken.heard == response["usage"]["output_tokens"] < spoken.count


async def test_a_stop_string_that_ends_what_was_held_back():
    """The answer is complete, too, when the limit was met in the same token."""
    response = await response_of(Spoken("One. <tool_call", finish="length"), F, stops=("<tool",))

    assert (response["status"], outputs(response)) == ("completed", [("message", "completed", "One. ")])


async def test_logprobs_are_told_for_the_text_and_nothing_else():
    """With each delta its own, with the part all; as many of the likeliest as were asked for."""
    said = f"{THOUGHT}Wait \U0001f600.\n{CALL}\n Done."
    batches = await batches_of(Spoken(said), F, thinks=True, top_logprobs=1)
    events = [event.data for batch in batches for event in batch]
    parts = [item["content"][0] for item in events[-1]["response"]["output"] if item["type"] == "message"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]

    def spelt(logprobs) -> bytes:
        return b"".join(bytes(entry["bytes"]) for entry in logprobs)

    assert [part["text"] for part in parts] == ["Wait \U0001f600.", "Done."]
    assert [spelt(part["logprobs"]).strip() for part in parts] == [part["text"].encode() for part in parts]
    assert [one for event in deltas for one in event["logprobs"]] == parts[0]["logprobs"] + parts[1]["logprobs"]
    assert all(spelt(event["logprobs"]).decode().strip() == event["delta"].strip() for event in deltas)
    assert [event["logprobs"] for event in events if event["type"] == "response.output_text.done"] == [
        part["logprobs"] for part in parts
    ]
    first = parts[0]["logprobs"][0]
    assert (first["logprob"], len(first["top_logprobs"]), first["top_logprobs"][0]["logprob"]) == (-0.5, 1, -0.5)


async def test_the_sdk_reads_every_event():
    """By its own types, strictly."""
    adapter = TypeAdapter(ResponseStreamEvent)
    batches = await batches_of(Spoken(f"{THOUGHT}Wait.\n{CALL}{PATCH_HEAD}a"), F, PATCH, thinks=True, top_logprobs=2)
    events = [event for batch in batches for event in batch]
    read = [adapter.validate_python(dict(event.data)) for event in events]

    assert [event.type for event in events] == [event.type for event in read]
    assert list(range(len(events))) == [event.sequence_number for event in read]
