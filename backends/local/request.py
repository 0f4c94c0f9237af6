"""A request's body -> the prompt and the options of one generation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.local.conversation import messages_of
from backends.local.engine import Options
from backends.local.model import Model
from backends.local.parameters import Parameters
from backends.local.tools import names_of, tools_of


@dataclass(frozen=True, slots=True)
class Request:
    prompt: list[int]
    options: Options
    functions: frozenset[str]  # the names that may be called
    one_call: bool  # whether the first function call ends the answer
    body: Mapping[str, Any]  # as the response echoes it


def read_request(body: Mapping[str, Any], model: Model, defaults: Parameters) -> Request:
    """Raises RequestError for all that the model cannot read or do, before any work is done."""
    parameters = defaults.asked(body)
    tools = tools_of(body, callable_by_model=model.tool_format is not None)
    prompt = model.prompt(messages_of(body), tools)
    room = model.context_length - len(prompt)
    options = Options(min(parameters.max_output_tokens, room), model.stop_ids, parameters.temperature, parameters.top_p)
    one_call = body.get("parallel_tool_calls") is False
    return Request(prompt, options, names_of(tools), one_call, _echoed(body, parameters))


def _echoed(body: Mapping[str, Any], parameters: Parameters) -> Mapping[str, Any]:
    """The body with what was used where it said nothing."""
    text = {name: value for name, value in (body.get("text") or {}).items() if value is not None}
    return {**body, "temperature": parameters.temperature, "top_p": parameters.top_p, "text": text}
