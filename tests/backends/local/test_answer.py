"""Generated tokens as events of a response."""

import asyncio
import itertools
import re
from collections.abc import Sequence

import orjson
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from backends.local.answer import ResponseBuilder
from backends.local.decoding.job import DecodingOptions, DecodingStep, Token
from backends.local.host.engine import Generation
from backends.local.model.tokenizer import ModelTokenizer
from backends.local.request import LocalRequest
from backends.local.request.tool_choice import select_tools
from backends.local.speech import ReasoningTags
from backends.local.speech.hermes import HERMES
from proxy.rules.response_fields import LIFECYCLE
from proxy.wire.event import FOLLOWED, Event, Run
from tests.models import END, make_tokenizer
from tests.wire.contract import event_faults, frames_faults, order_faults, response_faults

LIBRARY_TOKENIZER = make_tokenizer(["</tool_call> and more"])
TOKENIZER = ModelTokenizer(LIBRARY_TOKENIZER)
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
PATCH_HEAD = '<tool_call>\n{"name": "patch", "input":\n'
REASONING = "<think>\nLet me see.\n</think>\n\n"
F = {"type": "function", "name": "f"}
NOTE = {"type": "custom", "name": "note"}
PATCH = {
    "type": "custom",
    "name": "patch",
    "format": {"type": "grammar", "syntax": "regex", "definition": "[^#]*"},
}
NO_TOOLS = select_tools({}, tool_format=HERMES)
CRM = {"type": "namespace", "name": "crm", "description": "People.", "tools": [F, NOTE]}


class FinishedGeneration:
    """A finished generation: the tokens of a text, some at each step."""

    def __init__(self, text, *, per_step=1, finish="stop", cached_tokens=0):
        ids = LIBRARY_TOKENIZER.encode(text).ids
        self.tokens = [Token(number, -0.5, [(number, -0.5), (0, -2.0)]) for number in ids]
        self.finish = finish
        self.cached_tokens = cached_tokens
        self.count = len(ids)
        self.taken = 0
        self._per_step = per_step

    async def __aiter__(self):
        for start in range(0, self.count, self._per_step):
            tokens = self.tokens[start : start + self._per_step]
            self.taken += len(tokens)
            yield tokens


async def batches_of(generation, *tools, reasons=False, is_open=False, stop=(), top_logprobs=None, grammar="", **body):
    """Return the batches of events, after checking them."""
    body = {"model": "tiny", "temperature": 0.0, "tools": list(tools), **body}
    request = LocalRequest(
        [1, 2, 3], DecodingOptions(9, frozenset(), top_logprobs=top_logprobs, grammar=grammar), body, select_tools(body, tool_format=HERMES),
        ReasoningTags() if reasons else None, is_open, stop,
    )  # fmt: skip
    received = ResponseBuilder(request, TOKENIZER).batches(generation, FOLLOWED)
    batches = [list(events_in(batch)) async for batch in received]
    events = [event for batch in batches for event in batch]
    data = [event.data for event in events]
    known = [fault for event in data for fault in event_faults(event) if not fault.startswith("openresponses")]

    assert frames_faults(events) + order_faults(data) + known == []
    return batches


def events_in(batch):
    """Yield the events of a batch, those in its runs included."""
    for unit in batch:
        frames = [unit.sse] if isinstance(unit, Event) else re.findall(rb".+?\n\n", unit.sse, re.DOTALL)
        for frame in frames:
            data = orjson.loads(frame.partition(b"data: ")[2])
            assert isinstance(unit, Event) == (data["type"] in FOLLOWED)
            yield Event(data["type"], frame, data)


async def response_of(generation, *tools, **more):
    return (await batches_of(generation, *tools, **more))[-1][-1].data["response"]


def outputs(response):
    """Return the type, status and text of each item."""
    return [
        (
            item["type"],
            item["status"],
            item.get("arguments", item.get("input")) if "call_id" in item else item["content"][0]["text"],
        )
        for item in response["output"]
    ]


async def test_fields_that_the_gateway_sets_are_in_each_response_object():
    """So that the gateway need not change the events."""
    request = LocalRequest([1, 2, 3], DecodingOptions(9, frozenset()), {"model": "tiny", "store": False})
    received = ResponseBuilder(request, TOKENIZER, {"store": True}).batches(FinishedGeneration("Hi"), FOLLOWED)
    events = [unit async for batch in received for unit in batch if unit.type in LIFECYCLE]

    assert [event.response["store"] for event in events] == [True, True, True]


async def test_every_token_becomes_a_delta():
    """The tokens of one step are one batch."""
    batches: list[Sequence] = await batches_of(FinishedGeneration("Hello there", per_step=2))
    deltas = [event for batch in batches for event in batch if event.type == "response.output_text.delta"]

    assert [[event.type for event in batch] for batch in batches[:2]] == [
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"],
        ["response.output_text.delta"] * 2,
    ]
    assert "".join(event.data["delta"] for event in deltas) == "Hello there"
    assert {tuple(event.data["logprobs"]) for event in deltas} == {()}
    assert [event.type for event in batches[-1]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


@pytest.mark.parametrize(
    ("tools", "reasons", "opened"), [((), False, ["message"]), ((F,), False, []), ((), True, [])]
)  # fmt: skip
async def test_a_message_is_opened_while_the_model_works(tools, reasons, opened):
    """Unless a call or reasoning may come first."""
    first, *_ = await batches_of(FinishedGeneration("Hi"), *tools, reasons=reasons)

    assert opened == [event.data["item"]["type"] for event in first if event.type == "response.output_item.added"]


class ForwardedText:
    """The tokens of a text, added to a generation while its batches are read, and what the outlet is offered of it."""

    def __init__(self, text, *, accepts=lambda _frames: True, **options):
        self.ids = LIBRARY_TOKENIZER.encode(text).ids
        self.generation, self.offered, self.batches = Generation(), [], []
        request = LocalRequest([1, 2, 3], DecodingOptions(9, frozenset()), {"model": "tiny"}, NO_TOOLS, None, False, **options)  # fmt: skip
        self.builder = ResponseBuilder(request, TOKENIZER)
        self.reading = self.builder.batches(self.generation, FOLLOWED)
        self._accepts = accepts

    async def read(self):
        """Read all batches, which ends the generation; return the data of all events in the order of their numbers."""
        for _ in range(2):
            self.batches.append(await anext(self.reading))
            self.generation.add_step(DecodingStep(1, [Token(self.ids[len(self.batches) - 1])]))
        self.reading.forward_runs(self._offer)
        reader = asyncio.ensure_future(self._read_rest())
        for token in self.ids[2:]:
            await asyncio.sleep(0)
            self.generation.add_step(DecodingStep(1, [Token(token)]))
        self.generation.add_step(DecodingStep(1, (), "stop"))
        await reader
        units = [[unit for batch in self.batches for unit in batch], self.offered]
        data = [event.data for each in units for event in events_in(each)]
        return sorted(data, key=lambda event: event["sequence_number"])

    async def _read_rest(self):
        async for batch in self.reading:
            self.batches.append(batch)

    def _offer(self, frames):
        is_taken = self._accepts(frames)
        if is_taken:
            self.offered.append(Run(frames))
        return is_taken


@pytest.mark.parametrize("takes", [(True,), (False,), (True, False)])
async def test_the_deltas_of_a_waiting_reader_are_forwarded(takes):
    """What the outlet refuses comes in the next batch; either way nothing is lost, and numbers have no gap."""
    text, answers = "Hello there, how are you today?", itertools.cycle(takes)
    forwarded = ForwardedText(text, accepts=lambda _: next(answers))
    data = await forwarded.read()
    refused = len(forwarded.ids) - 2 - len(forwarded.offered)

    assert order_faults(data) == []
    assert [event["sequence_number"] for event in data] == list(range(len(data)))
    assert "".join(event["delta"] for event in data if event["type"].endswith("text.delta")) == text
    assert (bool(forwarded.offered), bool(refused)) == (True in takes, False in takes)
    assert data[-1]["response"]["usage"]["output_tokens"] == len(forwarded.ids)


async def test_a_stop_sequence_in_forwarded_tokens_ends_the_answer():
    forwarded = ForwardedText("One. Two. Three. Four.", stop_sequences=("Three",))
    data = await forwarded.read()

    assert outputs(data[-1]["response"]) == [("message", "completed", "One. Two. ")]


async def test_a_fault_in_forwarded_tokens_fails_their_answer_only():
    """It does not reach the engine, whose other answers go on."""
    forwarded = ForwardedText("Hello there, how are you today?")
    forwarded.ids[3] = -1

    with pytest.raises(OverflowError):
        await forwarded.read()


async def test_the_final_response_is_complete():
    """With its text, parameters and usage."""
    generation = FinishedGeneration("Hello there", cached_tokens=2)
    response = await response_of(generation)

    assert response_faults(response) == []
    assert outputs(response) == [("message", "completed", "Hello there")]
    assert (response["status"], response["temperature"], response["store"]) == ("completed", 0.0, False)
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": generation.count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 3 + generation.count,
    }


async def test_an_answer_at_the_token_limit_is_incomplete():
    """With the reason."""
    response = await response_of(FinishedGeneration("Hello th", finish="length"))

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert outputs(response) == [("message", "incomplete", "Hello th")]


async def test_function_calls_are_separate_items():
    """In their order among the texts."""
    response = await response_of(FinishedGeneration(f"Wait.\n{CALL}\n{CALL} Done."), F)

    assert outputs(response) == [
        ("message", "completed", "Wait."),
        ("function_call", "completed", '{"a": 1}'),
        ("function_call", "completed", '{"a": 1}'),
        ("message", "completed", "Done."),
    ]
    assert len({item["call_id"] for item in response["output"] if item["type"] == "function_call"}) == 2


async def test_custom_tool_calls_are_separate_items():
    """With input in JSON, and with verbatim input."""
    note = '<tool_call>{"name": "note", "arguments": {"input": "a\\nb"}}</tool_call>'
    response = await response_of(FinishedGeneration(f"{note}\n{PATCH_HEAD}a {{b}}</tool_call>"), NOTE, PATCH)

    assert outputs(response) == [
        ("custom_tool_call", "completed", "a\nb"),
        ("custom_tool_call", "completed", "a {b}</tool_call>"),
    ]
    assert [item["name"] for item in response["output"]] == ["note", "patch"]


async def test_calls_of_tools_in_a_namespace_have_both_names():
    """Those of the caller, not the flat name that the model uses."""
    output = "".join(f'<tool_call>{{"name": "crm__{name}", "arguments": {{"input": ""}}}}' for name in ("f", "note"))
    response = await response_of(FinishedGeneration(output), CRM)

    assert [(item["type"], item["name"], item["namespace"]) for item in response["output"]] == [
        ("function_call", "f", "crm"),
        ("custom_tool_call", "note", "crm"),
    ]


@pytest.mark.parametrize("body", [{"parallel_tool_calls": False}, {"tool_choice": {"type": "function", "name": "f"}}])
async def test_the_first_call_may_end_the_answer(body):
    """Further output is neither returned nor awaited; the response is complete even near the limit."""
    alone, followed = FinishedGeneration(CALL), FinishedGeneration(f"{CALL}\n{CALL}", finish="length")
    responses = [await response_of(generation, F, **body) for generation in (alone, followed)]

    assert [outputs(response) for response in responses] == [[("function_call", "completed", '{"a": 1}')]] * 2
    assert [response["status"] for response in responses] == ["completed"] * 2
    assert [alone.taken, followed.taken] == [response["usage"]["output_tokens"] for response in responses]
    assert followed.taken < alone.count


@pytest.mark.parametrize("more", [f" and {CALL}", " and more"])
async def test_one_call_also_ends_a_batch_of_many(more):
    """And a token that contains more than the closing tag."""
    response = await response_of(FinishedGeneration(CALL + more, per_step=1000), F, parallel_tool_calls=False)

    assert outputs(response) == [("function_call", "completed", '{"a": 1}')]


async def test_without_tools_a_call_is_text():
    """Its tags included."""
    assert outputs(await response_of(FinishedGeneration(CALL))) == [("message", "completed", CALL)]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("<tool_call>\n{", ("message", "incomplete", "<tool_call>\n{")),
        ('<tool_call>\n{"name": "f", "arguments": {"a"', ("function_call", "incomplete", '{"a"')),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}', ("function_call", "completed", '{"a": 1}')),
        ('<tool_call>{"name": "note", "arguments": {"input": "a', ("custom_tool_call", "incomplete", "a")),
        (PATCH_HEAD, ("custom_tool_call", "incomplete", "")),
        (PATCH_HEAD + "a b", ("custom_tool_call", "incomplete", "a b")),
    ],
)
@pytest.mark.parametrize("grammar", ["", "any"], ids=["at once", "streamed"])
async def test_a_call_that_was_cut_off_is_incomplete(output, expected, grammar):
    """Like OpenAI's: its arguments are a beginning of JSON. Before its name is known it is text."""
    response = await response_of(FinishedGeneration(output, finish="length"), F, NOTE, PATCH, grammar=grammar)

    assert (response["status"], outputs(response)) == ("incomplete", [expected])


@pytest.mark.parametrize("named", [False, True])
async def test_arguments_that_a_grammar_constrains_are_streamed(named):
    """Token by token; without a grammar they are returned once they are valid."""
    body = {"tool_choice": {"type": "function", "name": "f"}} if named else {}
    batches = await batches_of(FinishedGeneration(CALL if named else f"Hi.\n{CALL}"), F, grammar="any", **body)
    events = [event for batch in batches for event in batch]
    deltas = [event.data["delta"] for event in events if event.type == "response.function_call_arguments.delta"]
    late = await batches_of(FinishedGeneration(CALL), F)

    assert "".join(deltas) == '{"a": 1}'
    assert len(deltas) > 3
    assert outputs(events[-1].data["response"])[-1] == ("function_call", "completed", '{"a": 1}')
    assert [event.data["delta"] for batch in late for event in batch if "arguments.delta" in event.type] == ['{"a": 1}']


async def test_verbatim_input_is_streamed():
    """Token by token."""
    batches = await batches_of(FinishedGeneration(PATCH_HEAD + "a b c d"), PATCH, grammar="any")
    deltas = [event.data["delta"] for batch in batches for event in batch if "input.delta" in event.type]

    assert "".join(deltas) == "a b c d"
    assert len(deltas) > 3


async def test_an_incomplete_call_of_a_model_that_ended_is_text():
    """It was not cut off by the limit, so it is not a call."""
    output = '<tool_call>\n{"name": "f", "arguments": {"a"'

    assert outputs(await response_of(FinishedGeneration(output), F)) == [("message", "completed", output)]


async def test_reasoning_is_a_separate_item():
    """Before the answer; its tokens are counted separately."""
    generation = FinishedGeneration(f"{REASONING}Oslo.")
    batches = await batches_of(generation, reasons=True)
    response = batches[-1][-1].data["response"]
    reasoning, details = LIBRARY_TOKENIZER.encode(REASONING.rstrip()).ids, response["usage"]["output_tokens_details"]

    assert outputs(response) == [("reasoning", "completed", "Let me see."), ("message", "completed", "Oslo.")]
    assert response["output"][0]["summary"] == []
    assert (details["reasoning_tokens"], response["usage"]["output_tokens"]) == (len(reasoning), generation.count)
    assert len([event for batch in batches for event in batch if event.type == "response.reasoning_text.delta"]) > 3


async def test_the_prompt_may_open_the_reasoning():
    """Then the answer begins inside it."""
    response = await response_of(FinishedGeneration("Let me see.</think>Oslo."), reasons=True, is_open=True)

    assert outputs(response) == [("reasoning", "completed", "Let me see."), ("message", "completed", "Oslo.")]


async def test_a_call_may_follow_the_reasoning():
    """Without any text."""
    response = await response_of(FinishedGeneration(REASONING + CALL), F, reasons=True)

    assert outputs(response) == [("reasoning", "completed", "Let me see."), ("function_call", "completed", '{"a": 1}')]


async def test_reasoning_that_was_cut_off_is_incomplete():
    """No message follows it, because only the last item may be incomplete."""
    response = await response_of(FinishedGeneration("<think>Let me", finish="length"), reasons=True)

    assert (response["status"], outputs(response)) == ("incomplete", [("reasoning", "incomplete", "Let me")])


@pytest.mark.parametrize("text", ["", END])
async def test_an_empty_answer_has_an_empty_message(text):
    """Clients read the text of the first item."""
    assert outputs(await response_of(FinishedGeneration(text), F)) == [("message", "completed", "")]


async def test_an_answer_of_reasoning_only_has_an_empty_message():
    """Clients expect a message."""
    response = await response_of(FinishedGeneration("<think>Hm.</think>"), reasons=True)

    assert outputs(response) == [("reasoning", "completed", "Hm."), ("message", "completed", "")]


async def test_a_stop_sequence_ends_the_answer():
    """The response is complete; the sequence itself is not part of it."""
    generation = FinishedGeneration("One. Two. Three. Four.", finish="length")
    response = await response_of(generation, stop=(". Th", "none"))

    assert (response["status"], outputs(response)) == ("completed", [("message", "completed", "One. Two")])
    assert generation.taken == response["usage"]["output_tokens"] < generation.count


async def test_a_stop_sequence_may_end_held_back_text():
    """The response is complete even if the same token reaches the limit."""
    response = await response_of(FinishedGeneration("One. <tool_call", finish="length"), F, stop=("<tool",))

    assert (response["status"], outputs(response)) == ("completed", [("message", "completed", "One. ")])


async def test_only_text_has_logprobs():
    """Each delta has its own, the part has all; with the requested number of alternatives."""
    output = f"{REASONING}Wait \U0001f600.\n{CALL}\n Done."
    batches = await batches_of(FinishedGeneration(output), F, reasons=True, top_logprobs=1)
    events = [event.data for batch in batches for event in batch]
    parts = [item["content"][0] for item in events[-1]["response"]["output"] if item["type"] == "message"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]

    def bytes_of(logprobs) -> bytes:
        return b"".join(bytes(entry["bytes"]) for entry in logprobs)

    assert [part["text"] for part in parts] == ["Wait \U0001f600.", "Done."]
    assert [bytes_of(part["logprobs"]).strip() for part in parts] == [part["text"].encode() for part in parts]
    assert [one for event in deltas for one in event["logprobs"]] == parts[0]["logprobs"] + parts[1]["logprobs"]
    assert all(bytes_of(event["logprobs"]).decode().strip() == event["delta"].strip() for event in deltas)
    assert [event["logprobs"] for event in events if event["type"] == "response.output_text.done"] == [
        part["logprobs"] for part in parts
    ]
    first = parts[0]["logprobs"][0]
    assert (first["logprob"], len(first["top_logprobs"]), first["top_logprobs"][0]["logprob"]) == (-0.5, 1, -0.5)


async def test_the_sdk_parses_every_event():
    """Into its own types."""
    adapter = TypeAdapter(ResponseStreamEvent)
    batches = await batches_of(
        FinishedGeneration(f"{REASONING}Wait.\n{CALL}{PATCH_HEAD}a"), F, PATCH, reasons=True, top_logprobs=2
    )
    events = [event for batch in batches for event in batch]
    read = [adapter.validate_python(dict(event.data)) for event in events]

    assert [event.type for event in events] == [event.type for event in read]
    assert list(range(len(events))) == [event.sequence_number for event in read]
