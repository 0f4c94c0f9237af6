"""The bodies of hostile requests."""

import functools
import gzip

import orjson

ARRAYS_BYTES = 120_000_000
ESCAPED_BYTES = 64_000_000
CONVERSATION_BYTES = 8_000_000
MAX_VALUES, INCLUDES = 200_000, 100_000
LARGEST_BYTES = 134_217_728  # the gateway's max_body_bytes


@functools.cache
def arrays() -> bytes:
    """Return 120 MB with 40 million empty arrays."""
    return b'{"model":"hello","input":[' + b"[]," * (ARRAYS_BYTES // 3) + b"[]]}"


@functools.cache
def gzipped_arrays() -> bytes:
    """Return the same in about 117 kB."""
    return gzip.compress(arrays(), 9)


@functools.cache
def one_escape() -> bytes:
    """Return 64 MB of text with one escaped colon, which the check for duplicate names must read."""
    return b'{"model":"hello","input":"' + b"a" * ESCAPED_BYTES + b'\\u003a"}'


@functools.cache
def conversation() -> bytes:
    """Return an ordinary conversation of 8 MB, with tools."""
    text = "What is the weather in Bern, and what was it yesterday? " * 16
    turns: list[object] = []
    for number in range(CONVERSATION_BYTES // 2200):
        call = {"call_id": f"call_{number}", "name": "weather"}
        turns += [
            {"role": "user", "content": [{"type": "input_text", "text": text}]},
            {"type": "function_call", "arguments": '{"city":"Bern"}', **call},
            {"type": "function_call_output", "call_id": f"call_{number}", "output": text},
        ]
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [{"type": "function", "name": "weather", "parameters": parameters}]
    return orjson.dumps({"model": "hello", "input": turns, "tools": tools, "stream": False})


@functools.cache
def many_values() -> bytes:
    """Return an input of as many values as a body may have."""
    return b'{"model":"hello","input":[%b]}' % b",".join([b'{"role":"user","content":"Hi"}'] * (MAX_VALUES // 3 - 2))


@functools.cache
def includes() -> bytes:
    """Return a request that asks for 100,000 fields."""
    return orjson.dumps({"model": "hello", "input": "Hi", "include": [f"field.{n}" for n in range(INCLUDES)]})


@functools.cache
def largest() -> bytes:
    """Return the largest body that the gateway reads: one long text."""
    start, end = b'{"model":"hello","input":"', b'"}'
    return start + b"a" * (LARGEST_BYTES - len(start) - len(end)) + end


def small(model: str, *, stream: bool) -> bytes:
    return orjson.dumps({"model": model, "input": "Hello", "stream": stream})
