"""Tokens as events."""

from collections.abc import Sequence

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from backends.local.answer import Answer
from backends.local.engine import Options
from backends.local.request import Request
from backends.local.tokens import Tokens
from tests.models import END, make_tokenizer

TOKENIZER = make_tokenizer(["</tool_call> and more"])
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


class Spoken:
    """A generation that has happened: the ids of a text, so many at each step."""

    def __init__(self, text, *, at_once=1, finish="stop"):
        ids = TOKENIZER.encode(text).ids
        self.finish = finish
        self.count = len(ids)
        self._steps = [ids[start : start + at_once] for start in range(0, len(ids), at_once)]

    async def __aiter__(self):
        for ids in self._steps:
            yield ids


async def batches_of(spoken, *functions, one_call=False):
    body = {"model": "tiny", "temperature": 0.0}
    request = Request([1, 2, 3], Options(9, frozenset()), frozenset(functions), one_call, body)
    answer = Answer(request, Tokens(TOKENIZER))
    return [batch async for batch in answer.batches(spoken)]


async def response_of(spoken, *functions, one_call=False):
    return (await batches_of(spoken, *functions, one_call=one_call))[-1][-1].response


def outputs(response):
    return [
        (item["type"], item["status"], item.get("arguments") or item.get("content", [{}])[0].get("text"))
        for item in response["output"]
    ]


async def test_every_token_is_a_delta_as_soon_as_it_is_there():
    """What one step brings goes out in one batch."""
    spoken = Spoken("Hello there", at_once=2)
    batches: list[Sequence] = await batches_of(spoken)

    assert [
        ["response.created", "response.in_progress"],
        ["response.output_item.added", "response.content_part.added", *["response.output_text.delta"] * 2],
    ] == [[event.type for event in batch] for batch in batches[:2]]
    assert (
        "".join(
            event.data["delta"] for batch in batches for event in batch if event.type == "response.output_text.delta"
        )
        == "Hello there"
    )
    assert [event.type for event in batches[-1]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_the_final_response_is_whole():
    """Its text, what it was made with, and what it cost."""
    spoken = Spoken("Hello there")
    response = await response_of(spoken)

    assert outputs(response) == [("message", "completed", "Hello there")]
    assert (response["status"], response["temperature"], response["store"]) == ("completed", 0.0, False)
    assert (3, spoken.count, 3 + spoken.count) == tuple(
        response["usage"][name] for name in ("input_tokens", "output_tokens", "total_tokens")
    )


async def test_an_answer_that_met_its_limit_is_incomplete():
    """And says why."""
    response = await response_of(Spoken("Hello th", finish="length"))

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert outputs(response) == [("message", "incomplete", "Hello th")]


async def test_calls_are_items_of_their_own():
    """Between texts, in the order in which they were made."""
    response = await response_of(Spoken(f"Wait.\n{CALL}\n{CALL} Done."), "f")

    assert outputs(response) == [
        ("message", "completed", "Wait."),
        ("function_call", "completed", '{"a":1}'),
        ("function_call", "completed", '{"a":1}'),
        ("message", "completed", "Done."),
    ]
    assert len({item["call_id"] for item in response["output"] if item["type"] == "function_call"}) == 2


async def test_one_call_may_be_all_that_was_asked_for():
    """What would follow is neither given nor counted; the response is complete, also when the limit is near."""
    alone, followed = Spoken(CALL), Spoken(f"{CALL}\n{CALL}", finish="length")
    responses = [await response_of(spoken, "f", one_call=True) for spoken in (alone, followed)]

    assert [outputs(response) for response in responses] == [[("function_call", "completed", '{"a":1}')]] * 2
    assert [response["status"] for response in responses] == ["completed"] * 2
    assert [alone.count] * 2 == [response["usage"]["output_tokens"] for response in responses]


@pytest.mark.parametrize("more", [f" and {CALL}", " and more"])
async def test_one_call_also_ends_a_batch_of_many(more):
    """And a token that says more than the call's last tag."""
    response = await response_of(Spoken(CALL + more, at_once=1000), "f", one_call=True)

    assert outputs(response) == [("function_call", "completed", '{"a":1}')]


async def test_without_functions_there_are_no_calls():
    """What looks like one is text."""
    assert outputs(await response_of(Spoken(CALL))) == [("message", "completed", CALL)]


async def test_a_call_that_was_cut_off_is_incomplete_text():
    response = await response_of(Spoken("<tool_call>\n{", finish="length"), "f")

    assert outputs(response) == [("message", "incomplete", "<tool_call>\n{")]


@pytest.mark.parametrize("text", ["", END])
async def test_an_answer_of_nothing_is_an_empty_message(text):
    """Readers take the first item's text."""
    response = await response_of(Spoken(text), "f")

    assert outputs(response) == [("message", "completed", "")]


async def test_the_sdk_reads_every_event():
    """By its own types, strictly."""
    adapter = TypeAdapter(ResponseStreamEvent)
    batches = await batches_of(Spoken(f"Wait.\n{CALL}"), "f")
    events = [event for batch in batches for event in batch]
    read = [adapter.validate_python(dict(event.data)) for event in events]

    assert [event.type for event in events] == [event.type for event in read]
    assert list(range(len(events))) == [event.sequence_number for event in read]
