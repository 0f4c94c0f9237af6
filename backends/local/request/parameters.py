"""The request's parameters that say how an answer is made, and what becomes of those that a local model has not.

    honoured   max_output_tokens, temperature, top_p, top_logprobs; top_k, repetition_penalty, stop of local engines
    refused    background, prompt: an answer without them would be another answer
    left out   all others that would change an answer; `ignored` names them, and the caller reads it in a header

Source: https://platform.openai.com/docs/api-reference/responses/create
"""  # fmt: skip

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.request.checks import decimal, integer, shaped, strings
from backends.local.request.faults import unsupported, wrong_value
from proxy.wire.errors import RequestError

SHAPES: Mapping[str, tuple[type, str]] = {
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

# What other parts of the backend or of the path read, or what says nothing about the answer's text.
READ_ELSEWHERE = frozenset({
    "background", "conversation", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata",
    "model", "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_retention",
    "reasoning", "repetition_penalty", "safety_identifier", "stop", "store", "stream", "stream_options", "temperature",
    "text", "tool_choice", "tools", "top_k", "top_logprobs", "top_p", "truncation", "user",
})  # fmt: skip
PENALTIES = ("frequency_penalty", "presence_penalty")
# Values that ask for nothing.
NOTHING_ASKED: Mapping[str, Sequence[Any]] = {
    **dict.fromkeys(PENALTIES, (0,)),
    "min_p": (0,),
    "logit_bias": ({},),
    "n": (1,),
    "service_tier": ("auto", "default"),
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """How an answer is made. Temperature 0 always takes the likeliest token."""

    max_output_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0  # 0: as many as the engine sees fit
    repetition_penalty: float = 1.0
    top_logprobs: int | None = None  # None: no logprobs are asked for
    stops: tuple[str, ...] = ()
    truncates: bool = False  # whether old messages may be left out of a prompt that is too long

    def asked(self, body: Mapping[str, Any]) -> "Parameters":
        """These with what the request says instead. Raises RequestError."""
        shaped(body, SHAPES)
        shaped(body.get("metadata") or {}, dict.fromkeys(body.get("metadata") or {}, (str, "a string")), "metadata.")
        integer(body, "max_tool_calls", least=1)
        for name in PENALTIES:
            decimal(body, name, least=-2, most=2, default=0)
        _refuse_what_needs_more(body)
        top_logprobs = integer(body, "top_logprobs", least=0, most=MAX_LOGPROBS)
        most = self.max_output_tokens
        return Parameters(
            min(integer(body, "max_output_tokens", least=MIN_OUTPUT_TOKENS) or most, most),
            decimal(body, "temperature", least=0, most=MAX_TEMPERATURE, default=self.temperature),
            decimal(body, "top_p", least=0, most=1, default=self.top_p),
            integer(body, "top_k", least=0) or 0,
            decimal(body, "repetition_penalty", least=MIN_PENALTY, most=MAX_PENALTY, default=1),
            (top_logprobs or 0) if LOGPROBS in strings(body, "include") else None,
            _stops(body),
            _truncates(body),
        )


def ignored(body: Mapping[str, Any], *, reasons: bool) -> Iterator[str]:
    """The names of what the request asks for and this backend leaves out. Call it with a body that was read."""
    for name, value in body.items():
        if name not in READ_ELSEWHERE and value is not None and value not in NOTHING_ASKED.get(name, ()):
            yield name
    included = strings(body, "include")
    yield from (f"include.{value}" for value in included if value != LOGPROBS)
    if body.get("top_logprobs") and LOGPROBS not in included:
        yield "top_logprobs"
    if (body.get("text") or {}).get("verbosity") not in (None, "medium"):
        yield "text.verbosity"
    reasoning = body.get("reasoning") or {}
    if not reasons and reasoning.get("effort") not in (None, "none"):
        yield "reasoning.effort"
    if reasoning.get("summary") is not None:
        yield "reasoning.summary"


def _refuse_what_needs_more(body: Mapping[str, Any]) -> None:
    if body.get("background"):
        raise unsupported("background", "a local model answers while the caller waits; leave it out or say false.")
    if body.get("prompt") is not None:
        raise unsupported("prompt", "a local model has no stored prompts; send instructions and input.")


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts at which the answer ends; they are not part of it."""
    given = body.get("stop")
    stops = [given] if isinstance(given, str) else strings(body, "stop")
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


def _truncates(body: Mapping[str, Any]) -> bool:
    given = body.get("truncation")
    if given not in (None, "auto", "disabled"):
        raise wrong_value("truncation", given, "'auto' and 'disabled'")
    return bool(given == "auto")
