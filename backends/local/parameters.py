"""The request's parameters that say how an answer is made, and the refusal of those that this model cannot honour.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.local.faults import unsupported, wrong_type
from proxy.wire.errors import RequestError

SHAPES: Mapping[str, tuple[type, str]] = {
    "background": (bool, "a boolean"),
    "instructions": (str, "a string"),
    "metadata": (dict, "an object"),
    "parallel_tool_calls": (bool, "a boolean"),
    "reasoning": (dict, "an object"),
    "text": (dict, "an object"),
    "tools": (list, "an array of objects"),
}
MIN_OUTPUT_TOKENS = 16
MAX_TEMPERATURE = 2


@dataclass(frozen=True, slots=True)
class Parameters:
    """How an answer is made. Temperature 0 always takes the likeliest token."""

    max_output_tokens: int
    temperature: float
    top_p: float = 1.0

    def asked(self, body: Mapping[str, Any]) -> "Parameters":
        """These with what the request says instead. Raises RequestError."""
        for name, (shape, expected) in SHAPES.items():
            if not isinstance(body.get(name), shape | None):
                raise wrong_type(name, expected, body[name])
        _refuse_what_needs_more(body)
        return Parameters(
            min(_output_tokens(body.get("max_output_tokens")) or self.max_output_tokens, self.max_output_tokens),
            _decimal(body, "temperature", MAX_TEMPERATURE, self.temperature),
            _decimal(body, "top_p", 1, self.top_p),
        )


def _refuse_what_needs_more(body: Mapping[str, Any]) -> None:
    if body.get("background"):
        raise unsupported("background", "a local model answers while the caller waits; leave it out or say false.")
    if body.get("prompt") is not None:
        raise unsupported("prompt", "a local model has no stored prompts; send instructions and input.")
    form = (body.get("text") or {}).get("format")
    if form is None:
        return
    if not isinstance(form, dict):
        raise wrong_type("text.format", "an object", form)
    if form.get("type") != "text":
        raise unsupported("text.format", "this model cannot promise JSON; its only format is of type 'text'.")


def _output_tokens(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type("max_output_tokens", "an integer", value)
    if value < MIN_OUTPUT_TOKENS:
        raise _out_of_range("max_output_tokens", "integer", "below", f">= {MIN_OUTPUT_TOKENS}", value)
    return value


def _decimal(body: Mapping[str, Any], name: str, most: int, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong_type(name, "a decimal", value)
    if value < 0:
        raise _out_of_range(name, "decimal", "below", ">= 0", value)
    if value > most:
        raise _out_of_range(name, "decimal", "above", f"<= {most}", value)
    return float(value)


def _out_of_range(name: str, kind: str, side: str, allowed: str, value: float) -> RequestError:
    bound = {"below": ("minimum", "min"), "above": ("maximum", "max")}[side]
    return RequestError(
        f"Invalid '{name}': {kind} {side} {bound[0]} value. Expected a value {allowed}, but got {value} instead.",
        code=f"{kind}_{side}_{bound[1]}_value", param=name,
    )  # fmt: skip
