"""Sends requests to the model as callers do: through the local backend, where grammars hold calls and JSON."""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from backends.local import Local
from backends.training.dialogue import Dialogue, Json, assistant, assistant_calls
from backends.training.prompt import split_last_answer
from backends.training.subjects.objects import ANY_OBJECT
from backends.training.subjects.schemas import SCHEMA
from proxy.context import Caller, Context
from proxy.wire.call import Call
from proxy.wire.errors import HeadgateError
from proxy.wire.transcript import Transcript

BY_SCHEMA = SCHEMA.format("")
AT_ONCE = 16


def answer_all(model: Path, dialogues: Sequence[Dialogue], longest: int) -> list[str]:
    """Return the answers that callers would get, in the form in which the chat template writes them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    return asyncio.run(_answer_all(model, dialogues, longest))


async def _answer_all(model: Path, dialogues: Sequence[Dialogue], longest: int) -> list[str]:
    local = Local(name="demo", path=model, max_output_tokens=longest, max_waiting=AT_ONCE, max_wait_s=3600)
    await local.start()
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(dialogue: Dialogue) -> str:
        async with slots:
            return await _answer(local, dialogue)

    try:
        return await asyncio.gather(*map(ask, dialogues))
    finally:
        await local.close()


async def _answer(local: Local, dialogue: Dialogue) -> str:
    call = Call(build_request(dialogue))
    context = Context("evaluation", Caller("evaluation", "evaluation"))
    transcript = Transcript()
    try:
        async with local.respond(call, context) as reply:
            if reply.batches is None:
                raise TypeError("the local model answers with a stream")
            async for batch in reply.batches:
                transcript.add(batch)
    except HeadgateError as error:
        return f"({error.message})"
    response = transcript.response
    if response.get("status") != "completed":
        return f"({response.get('status')})"  # the answer reached its maximum length
    message = build_message(response["output"])
    return split_last_answer([*dialogue.messages[:-1], message], dialogue.tools)[1]


def build_request(dialogue: Dialogue) -> Json:
    """Return the body of a request whose answer is the last message of the dialogue."""
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
    """Return the messages as items of the protocol; results get the ids of their calls in order."""
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


def build_message(output: Sequence[Any]) -> Json:
    """Return the items of an answer as one message of the assistant."""
    called = [(item["name"], json.loads(item["arguments"])) for item in output if item["type"] == "function_call"]
    texts = [part["text"] for item in output if item["type"] == "message" for part in item["content"]]
    return {**(assistant_calls(*called) if called else assistant("")), "content": "".join(texts)}
