"""A request's body -> the prompt and the options of one generation, or a refusal before any work is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.decoding.job import DecodingOptions
from backends.local.grammar import JsonStyle
from backends.local.model import Model
from backends.local.request.conversation import JSON, build_messages
from backends.local.request.cost import charge_grammars
from backends.local.request.parameters import PENALTIES, GenerationParameters, find_ignored
from backends.local.request.text_format import TextFormat, read_text_format
from backends.local.request.tool_choice import ToolSelection, select_tools
from backends.local.request.truncation import fit_prompt
from backends.local.request.validation import invalid_type, invalid_value
from backends.local.speech import ReasoningTags, find_tool_format

# How many tokens at the end of a prompt suffice to see whether reasoning is open there.
PROMPT_TAIL_TOKENS = 16
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class LocalRequest:
    """A request as the engine and the response need it."""

    prompt: list[int]
    options: DecodingOptions
    body: Mapping[str, Any]  # as the response echoes it
    tools: ToolSelection = ToolSelection()  # noqa: RUF009  it is frozen
    reasoning_tags: ReasoningTags | None = None  # None when the model does not reason
    reasoning_open: bool = False  # whether the prompt ends inside the reasoning
    stop_sequences: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  # the names of parameters and tools that were ignored


def read_request(
    body: Mapping[str, Any], model: Model, defaults: GenerationParameters, *,
    team: str = "", ignore_unknown_tools: bool = False, history_items: int = 0,
) -> LocalRequest:  # fmt: skip
    """Return a request for this model. Raises RequestError for everything that the model cannot read or do.

    `history_items` is how many items of the input the gateway put before the caller's own: errors do not count them.
    """
    parameters = defaults.override(body)
    charge_grammars(body)
    text_format = read_text_format(body)
    tools = _select_tools(body, model, ignore_unknown=ignore_unknown_tools)
    tags = None if model.reasoning is None else ReasoningTags(*model.reasoning)
    variables, effort_supported = _read_effort(body, model)
    ignored = [*find_ignored(body, effort_supported=effort_supported), *tools.ignored]
    messages = _build_messages(body, tools, text_format, ignored, history_items)
    prompt = _build_prompt(messages, tools, model, parameters, variables)
    reasoning_open = tags is not None and tags.are_open_in(_decode_tail(prompt, model))
    style = JsonStyle(model.json_style.item_separator, model.json_style.key_separator)
    key = body.get("prompt_cache_key")
    has_key, stops = isinstance(key, str), _select_stops(parameters, text_format, ignored)
    options = DecodingOptions(
        max_tokens=min(parameters.max_output_tokens, model.context_length - len(prompt)),
        stop_ids=model.stop_ids,
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        top_k=min(parameters.top_k, len(model.vocabulary)),
        repetition_penalty=parameters.repetition_penalty,
        grammar=tools.build_grammar(
            text_format.build_rule(style), model.tokenizer.control_tokens, style=style,
            reasoning_tags=tags, reasoning_open=reasoning_open,
        ),
        allows_free_text=text_format.schema is None and not tools.must_call,
        top_logprobs=parameters.top_logprobs,
        prefix_tokens=model.prefix_length(messages, tools.definitions, prompt, **variables) if has_key else 0,
        prefix_key=f"{team}\0{key or ''}",
        delivers_at_once=body.get("stream") is True or bool(stops) or tools.one_call,
    )  # fmt: skip
    echo = _build_echo(body, parameters)
    return LocalRequest(prompt, options, echo, tools, tags, reasoning_open, stops, tuple(ignored))


def _select_stops(
    parameters: GenerationParameters, text_format: TextFormat, ignored: list[str]
) -> tuple[str, ...]:  # fmt: skip
    """Return the stop sequences. JSON has none: cut at one, it would be invalid."""
    if not parameters.stop_sequences or text_format.schema is None:
        return parameters.stop_sequences
    ignored.append("stop")
    return ()


def _select_tools(body: Mapping[str, Any], model: Model, *, ignore_unknown: bool) -> ToolSelection:
    name, control_tokens = model.tool_format, model.tokenizer.control_tokens
    tool_format = None if name is None else find_tool_format(name, control_tokens)
    return select_tools(body, tool_format=tool_format, ignore_unknown=ignore_unknown)


def _read_effort(body: Mapping[str, Any], model: Model) -> tuple[dict[str, Any], bool]:
    """Return `reasoning.effort` as variables of the model's template, and whether the effort is supported."""
    effort = (body.get("reasoning") or {}).get("effort")
    if not isinstance(effort, str | None):
        raise invalid_type("reasoning.effort", "a string", effort)
    if effort not in (None, *EFFORTS):
        raise invalid_value("reasoning.effort", effort, ", ".join(map(repr, EFFORTS)))
    known: dict[str, Any] = {"enable_thinking": effort != "none", "reasoning_effort": effort}
    variables = {name: value for name, value in known.items() if effort and model.template.uses(name)}
    return variables, bool(variables) or (model.reasoning is None and effort == "none")


def _build_messages(
    body: Mapping[str, Any], tools: ToolSelection, text_format: TextFormat, ignored: list[str], history_items: int
) -> Sequence[JSON]:
    """Return the conversation, with the description of the text format at the end of the system message."""
    convert_call_id = str if tools.tool_format is None else tools.tool_format.convert_call_id
    messages = build_messages(
        body, convert_call_id=convert_call_id, ignored=ignored, history_items=history_items
    )  # fmt: skip
    instruction = text_format.instruction
    if not instruction:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": instruction}, *messages]
    return [messages[0] | {"content": f"{messages[0]['content']}\n\n{instruction}"}, *messages[1:]]


def _build_prompt(
    messages: Sequence[JSON], tools: ToolSelection, model: Model, parameters: GenerationParameters,
    variables: Mapping[str, Any],
) -> list[int]:  # fmt: skip
    """Return the tokens of the prompt; a conversation that may be truncated leaves room for the answer."""
    reserved = min(parameters.max_output_tokens, model.context_length // 2) if parameters.truncate else 0
    return fit_prompt(
        messages, lambda some: model.prompt(some, tools.definitions, **variables),
        max_tokens=model.context_length - reserved, truncate=parameters.truncate,
    )  # fmt: skip


def _decode_tail(prompt: Sequence[int], model: Model) -> str:
    tokenizer = model.tokenizer
    detokenize = tokenizer.build_detokenizer([], visible=tokenizer.control_tokens)
    return "".join(map(detokenize, prompt[-PROMPT_TAIL_TOKENS:]))


def _build_echo(body: Mapping[str, Any], parameters: GenerationParameters) -> Mapping[str, Any]:
    """Return the body with the values that were used in place of absent or unsupported ones."""
    text = {name: value for name, value in (body.get("text") or {}).items() if value is not None}
    used = {"temperature": parameters.temperature, "top_p": parameters.top_p, **dict.fromkeys(PENALTIES, 0.0)}
    return {**body, **used, "text": text}
