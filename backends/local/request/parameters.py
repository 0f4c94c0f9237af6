"""The request's parameters that control generation, and the treatment of those that a local model does not support.

    honoured   max_output_tokens, temperature, top_p, top_logprobs; beyond the protocol top_k, repetition_penalty, stop
    refused    background, prompt, and those that Chat Completions has instead of the protocol's: an answer without them
               would be a different one
    ignored    all others, unknown ones included; the caller finds their names in a response header

Source: https://platform.openai.com/docs/api-reference/responses/create, and what api.openai.com answers to MOVED
"""  # fmt: skip

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.request.validation import (
    check_types,
    invalid_value,
    read_decimal,
    read_integer,
    read_strings,
    unsupported_value,
)
from proxy.wire.errors import RequestError

TYPES: Mapping[str, tuple[type, str]] = {
    "background": (bool, "a boolean"),
    "instructions": (str, "a string"),
    "metadata": (dict, "an object"),
    "safety_identifier": (str, "a string"),
    "service_tier": (str, "a string"),
    "user": (str, "a string"),
    "parallel_tool_calls": (bool, "a boolean"),
    "prompt_cache_key": (str, "a string"),
    "prompt_cache_retention": (str, "a string"),
    "reasoning": (dict, "an object"),
    "text": (dict, "an object"),
    "tools": (list, "an array of objects"),
    "truncation": (str, "a string"),
}
MIN_OUTPUT_TOKENS = 16
MAX_TEMPERATURE = 2
MAX_LOGPROBS = 20
MIN_PENALTY, MAX_PENALTY = 0.01, 10
MAX_STOPS, MAX_STOP_CHARS = 16, 1024
LOGPROBS = "message.output_text.logprobs"

# Read by other parts of the backend or by the proxy, or without influence on the answer.
HANDLED_ELSEWHERE = frozenset({
    "background", "conversation", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata",
    "model", "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_retention",
    "reasoning", "repetition_penalty", "safety_identifier", "stop", "store", "stream", "stream_options", "temperature",
    "text", "tool_choice", "tools", "top_k", "top_logprobs", "top_p", "truncation", "user",
})  # fmt: skip
MOVED: Mapping[str, str] = {
    "messages": "input",
    "response_format": "text.format",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "functions": "tools",
    "function_call": "tool_choice",
}
"""Parameters of Chat Completions that change an answer, and what the protocol has instead."""
PENALTIES = ("frequency_penalty", "presence_penalty")
# Values that equal the absence of the parameter.
NEUTRAL_VALUES: Mapping[str, Sequence[Any]] = {
    **dict.fromkeys(PENALTIES, (0,)),
    "min_p": (0,),
    "logit_bias": ({},),
    "n": (1,),
    "service_tier": ("auto", "default"),
}

ANY_VALUE = ("any value",)
# Parameters that are objects, with their keys: ANY_VALUE if they are read elsewhere, otherwise the neutral values.
OBJECTS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "text": {"format": ANY_VALUE, "verbosity": ("medium",)},
    "reasoning": {"effort": ANY_VALUE},
    "stream_options": {"include_obfuscation": (False,)},
}


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """How an answer is generated. Temperature 0 always selects the likeliest token."""

    max_output_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0  # 0: the engine's own limit
    repetition_penalty: float = 1.0
    top_logprobs: int | None = None  # None: no logprobs were requested
    stop_sequences: tuple[str, ...] = ()
    truncate: bool = False  # whether old messages may be dropped from a prompt that is too long

    def override(self, body: Mapping[str, Any]) -> "GenerationParameters":
        """Return these parameters with those of a request in their place. Raises RequestError."""
        check_types(body, TYPES)
        metadata = body.get("metadata") or {}
        check_types(metadata, dict.fromkeys(metadata, (str, "a string")), "metadata.")
        read_integer(body, "max_tool_calls", least=1)
        for name in PENALTIES:
            read_decimal(body, name, least=-2, most=2, default=0)
        _refuse_unsupported(body)
        top_logprobs = read_integer(body, "top_logprobs", least=0, most=MAX_LOGPROBS)
        most = self.max_output_tokens
        return GenerationParameters(
            min(read_integer(body, "max_output_tokens", least=MIN_OUTPUT_TOKENS) or most, most),
            read_decimal(body, "temperature", least=0, most=MAX_TEMPERATURE, default=self.temperature),
            read_decimal(body, "top_p", least=0, most=1, default=self.top_p),
            read_integer(body, "top_k", least=0) or 0,
            read_decimal(body, "repetition_penalty", least=MIN_PENALTY, most=MAX_PENALTY, default=1),
            (top_logprobs or 0) if LOGPROBS in read_strings(body, "include") else None,
            _read_stop_sequences(body),
            _read_truncation(body),
        )


def find_ignored(body: Mapping[str, Any], *, effort_supported: bool) -> Iterator[str]:
    """Yield the names of parameters that this backend ignores. Requires a body whose values were checked."""
    for name, value in body.items():
        if name not in HANDLED_ELSEWHERE and value is not None and value not in NEUTRAL_VALUES.get(name, ()):
            yield name
    included = read_strings(body, "include")
    yield from (f"include.{value}" for value in included if value != LOGPROBS)
    if body.get("top_logprobs") and LOGPROBS not in included:
        yield "top_logprobs"
    if not effort_supported and (body.get("reasoning") or {}).get("effort") not in (None, "none"):
        yield "reasoning.effort"
    for name, known in OBJECTS.items():
        given = body.get(name)
        for key, value in given.items() if isinstance(given, dict) else ():
            if value is not None and value not in known.get(key, ()) and known.get(key) != ANY_VALUE:
                yield f"{name}.{key}"


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    if body.get("background"):
        raise unsupported_value("background", "a local model has no background jobs; leave it out or set it to false.")
    if body.get("prompt") is not None:
        raise unsupported_value("prompt", "a local model has no stored prompts; send instructions and input.")
    for name, successor in MOVED.items():
        if body.get(name) is not None:
            raise RequestError(
                f"Unsupported parameter: '{name}'. In the Responses API, this parameter has moved to '{successor}'.",
                code="unsupported_parameter", param=name,
            )  # fmt: skip


def _read_stop_sequences(body: Mapping[str, Any]) -> tuple[str, ...]:
    given = body.get("stop")
    stops = [given] if isinstance(given, str) else read_strings(body, "stop")
    if len(stops) > MAX_STOPS:
        raise RequestError(
            f"Invalid 'stop': array too long. Expected at most {MAX_STOPS} strings, but got {len(stops)}.",
            code="array_above_max_length", param="stop",
        )  # fmt: skip
    if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise RequestError(
            f"Invalid 'stop': each has at least 1 character and at most {MAX_STOP_CHARS}.",
            code="invalid_value", param="stop",
        )  # fmt: skip
    return tuple(stops)


def _read_truncation(body: Mapping[str, Any]) -> bool:
    given = body.get("truncation")
    if given not in (None, "auto", "disabled"):
        raise invalid_value("truncation", given, "'auto' and 'disabled'")
    return bool(given == "auto")
