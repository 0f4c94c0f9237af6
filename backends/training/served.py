"""Asks the model as callers do: through the backend that serves it, where grammars hold calls and JSON."""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from backends.local import Local
from backends.training.dialogue import Dialogue, Json, assistant, calls
from backends.training.prompt import question_and_answer
from backends.training.subjects.objects import ANY_OBJECT
from backends.training.subjects.schemas import SCHEMA
from proxy.wire.call import Call, Caller
from proxy.wire.errors import HeadgateError

BY_SCHEMA = SCHEMA.format("")
AT_ONCE = 16


def ask_served(model: Path, dialogues: Sequence[Dialogue], longest: int) -> list[str]:
    """The answers that callers would get, each written as the chat template writes it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    return asyncio.run(_asked(model, dialogues, longest))


async def _asked(model: Path, dialogues: Sequence[Dialogue], longest: int) -> list[str]:
    local = Local(name="demo", path=model, max_output_tokens=longest, max_waiting=AT_ONCE, max_wait_s=3600)
    await local.start()
    free = asyncio.Semaphore(AT_ONCE)

    async def ask(dialogue: Dialogue) -> str:
        async with free:
            return await _answer(local, dialogue)

    try:
        return await asyncio.gather(*map(ask, dialogues))
    finally:
        await local.close()


async def _answer(local: Local, dialogue: Dialogue) -> str:
    call = Call(Caller("evaluation", "evaluation"), request_of(dialogue), {})
    try:
        async with local.respond(call) as reply:
            events = [event async for batch in reply.batches for event in batch]
    except HeadgateError as error:
        return f"({error.message})"
    if events[-1].type != "response.completed":
        return f"({events[-1].type})"  # it did not come to an end in the length that it had
    message = message_of(events[-1].response["output"])
    return question_and_answer([*dialogue.messages[:-1], message], dialogue.tools)[1]


def request_of(dialogue: Dialogue) -> Json:
    """The body with which a caller would ask for the last message of a dialogue."""
    body: Json = {"model": "demo", "input": list(_items(dialogue.messages[:-1]))}
    first = body["input"][0]
    instructions = first["content"] if first.get("role") == "system" else ""
    if BY_SCHEMA in instructions:
        before, _, schema = instructions.partition(BY_SCHEMA)
        body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": json.loads(schema)}}
        first["content"] = before.rstrip()
    elif instructions.endswith(ANY_OBJECT):
        body["text"] = {"format": {"type": "json_object"}}
        first["content"] = instructions.removesuffix(ANY_OBJECT).rstrip()
    if first.get("content") == "":
        del body["input"][0]
    if dialogue.tools:
        body["tools"] = [{"type": "function", **(tool.get("function") or tool)} for tool in dialogue.tools]
    return body


def _items(messages: Sequence[Json]) -> Sequence[Json]:
    """Messages as the protocol's items; results follow the calls that they belong to."""
    items: list[Json] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            items.append({"type": "function_call_output", "call_id": waiting.pop(0), "output": message["content"]})
            continue
        if message["content"] or not message.get("tool_calls"):
            items.append({"role": message["role"], "content": message["content"]})
        for called in message.get("tool_calls") or ():
            waiting.append(f"call_{len(items)}")
            arguments = json.dumps(called["function"]["arguments"], ensure_ascii=False)
            name = called["function"]["name"]
            items.append({"type": "function_call", "call_id": waiting[-1], "name": name, "arguments": arguments})
    return items


def message_of(output: Sequence[Any]) -> Json:
    """The items of an answer as one message of the assistant."""
    called = [(item["name"], json.loads(item["arguments"])) for item in output if item["type"] == "function_call"]
    texts = [part["text"] for item in output if item["type"] == "message" for part in item["content"]]
    return {**(calls(*called) if called else assistant("")), "content": "".join(texts)}
