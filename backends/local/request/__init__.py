"""A request's body -> the prompt and the options of one generation, or a refusal before any work is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.decoding.job import DecodingOptions as Options
from backends.local.grammar import Style
from backends.local.model import Model
from backends.local.request.choice import Tools, tools_of
from backends.local.request.conversation import JSON, messages_of
from backends.local.request.faults import wrong_type, wrong_value
from backends.local.request.fit import fitted
from backends.local.request.parameters import PENALTIES, Parameters, ignored
from backends.local.request.text_format import TextFormat, text_format
from backends.local.speech import Thinking, format_named

# How many tokens at the end of a prompt tell whether a thought has begun there.
PROMPT_TAIL = 16
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class Request:
    prompt: list[int]
    options: Options
    body: Mapping[str, Any]  # as the response echoes it
    tools: Tools = Tools()  # noqa: RUF009  it is frozen
    thinking: Thinking | None = None  # None when the model does not think
    thought_begun: bool = False  # whether the prompt ends within a thought
    stops: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  # what was asked for and is left out, by name


def read_request(
    body: Mapping[str, Any], model: Model, defaults: Parameters, *, team: str = "", ignore_unknown_tools: bool = False
) -> Request:
    """Raises RequestError for all that the model cannot read or do."""
    parameters, form = defaults.asked(body), text_format(body)
    calls = None if model.tool_format is None else format_named(model.tool_format, model.tokens.controls)
    tools = tools_of(body, form=calls, ignore_unknown=ignore_unknown_tools)
    thinking = None if model.reasoning is None else Thinking(*model.reasoning)
    variables, effort_read = _variables(body, model)
    messages = _told(messages_of(body, call_id=str if calls is None else calls.id_of), form)
    room = min(parameters.max_output_tokens, model.context_length // 2) if parameters.truncates else 0
    prompt = fitted(
        messages, lambda some: model.prompt(some, tools.definitions, **variables),
        longest=model.context_length - room, whole=not parameters.truncates,
    )  # fmt: skip
    begun = thinking is not None and thinking.begun_in(_end_of(prompt, model))
    key = body.get("prompt_cache_key")
    options = Options(
        max_tokens=min(parameters.max_output_tokens, model.context_length - len(prompt)),
        stop_ids=model.stop_ids,
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        top_k=min(parameters.top_k, len(model.vocabulary)),
        repetition_penalty=parameters.repetition_penalty,
        grammar=tools.grammar(
            form.rule(style := Style(**dict(model.json_style))), model.tokens.controls, style=style,
            thinking=thinking, thought_begun=begun,
        ),
        free=form.schema is None and not tools.must_call,
        top_logprobs=parameters.top_logprobs,
        prefix=model.prefix_length(messages, tools.definitions, prompt, **variables) if isinstance(key, str) else 0,
        prefix_key=f"{team}\0{key or ''}",
    )  # fmt: skip
    left_out = [*ignored(body, reasons=effort_read), *tools.ignored]
    stops = parameters.stops
    if stops and form.schema is not None:  # cut anywhere, it would not be the JSON that was promised
        stops = ()
        left_out.append("stop")
    return Request(prompt, options, _echoed(body, parameters), tools, thinking, begun, stops, tuple(left_out))


def _variables(body: Mapping[str, Any], model: Model) -> tuple[dict[str, Any], bool]:
    """What the request's `reasoning.effort` means to the model's template, and whether it means anything."""
    effort = (body.get("reasoning") or {}).get("effort")
    if not isinstance(effort, str | None):
        raise wrong_type("reasoning.effort", "a string", effort)
    if effort not in (None, *EFFORTS):
        raise wrong_value("reasoning.effort", effort, ", ".join(map(repr, EFFORTS)))
    meant: dict[str, Any] = {"enable_thinking": effort != "none", "reasoning_effort": effort}
    variables = {name: value for name, value in meant.items() if effort and model.template.reads(name)}
    return variables, bool(variables) or (model.reasoning is None and effort == "none")


def _told(messages: Sequence[JSON], form: TextFormat) -> Sequence[JSON]:
    """The conversation with what the model must know of the format, where it was trained to find it."""
    if not form.prompt:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": form.prompt}, *messages]
    return [messages[0] | {"content": f"{messages[0]['content']}\n\n{form.prompt}"}, *messages[1:]]


def _end_of(prompt: Sequence[int], model: Model) -> str:
    return "".join(map(model.tokens.decoder([], shows=model.tokens.controls), prompt[-PROMPT_TAIL:]))


def _echoed(body: Mapping[str, Any], parameters: Parameters) -> Mapping[str, Any]:
    """The body with what was used where it said nothing, or what is not done here."""
    text = {name: value for name, value in (body.get("text") or {}).items() if value is not None}
    used = {"temperature": parameters.temperature, "top_p": parameters.top_p, **dict.fromkeys(PENALTIES, 0.0)}
    return {**body, **used, "text": text}
