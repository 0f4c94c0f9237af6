"""Renders a conversation with the model's own chat template, and separates control tokens from look-alikes.

A control token in the template's own text is rendered as a lone surrogate that stands for it. Text that came as JSON
contains no lone surrogates, so anything else in the result that looks like a control token came from a caller.
Source: https://huggingface.co/docs/transformers/chat_templating
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from backends.local.model.template_metering import add_metering
from backends.local.model.template_sandbox import TOO_WIDE, BoundedSandbox, WorkLimitExceeded
from backends.local.work_budget import current_budget
from proxy.wire.errors import RequestError

JSON = dict[str, Any]
FIRST_SURROGATE = 0xD800
MAX_CONTROL_TOKENS = 2048
# The longest known templates have a tenth of this; compiling takes about 1 s for a million characters.
MAX_SOURCE_CHARS = 200_000
MAX_INDENT = 100
MAX_MESSAGE_CHARS = 300
# What expressions raise for values that the template's author did not expect.
EXPRESSION_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
# What compilers raise for expressions that are nested too deeply.
NESTING_ERRORS = (MemoryError, SyntaxError)
SAMPLE = [{"role": role, "content": "a b"} for role in ("user", "assistant", "user")]


class ControlToken(str):
    """A control token that the template itself wrote."""

    __slots__ = ()


class ChatTemplate:
    """Raises ValueError for a template that cannot be compiled, takes too long, or hides its control tokens.

    `special` are the tokens that templates know by name: bos_token, eos_token ...
    """

    def __init__(self, source: str, control_tokens: Iterable[str], special: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise ValueError(f"The chat template has {len(source)} characters; the limit is {MAX_SOURCE_CHARS}.")
        longest_first = sorted(control_tokens, key=len, reverse=True)
        own_text = "".join([source, *special.values()])
        used = [token for token in longest_first if token in own_text]
        if len(used) > MAX_CONTROL_TOKENS:
            raise ValueError(f"The chat template uses {len(used)} control tokens; the limit is {MAX_CONTROL_TOKENS}.")
        self._surrogates = {token: chr(FIRST_SURROGATE + index) for index, token in enumerate(used)}
        self._control_tokens = {surrogate: ControlToken(token) for token, surrogate in self._surrogates.items()}
        self._token_pattern = _match_any(used)
        self._surrogate_pattern = _match_any(self._control_tokens)
        self._special = {name: self._substitute(token) for name, token in special.items()}
        self._sandbox = _build_sandbox()
        try:
            self._variables = find_undeclared_variables(self._sandbox.parse(source))
            self._template = self._sandbox.from_string(self._substitute_tree(self._parse(source)))
            self._template.globals = dict(self._template.globals)  # jinja2 copies them for each rendering
            self._verify(source, special, longest_first)
        except (TemplateError, *EXPRESSION_ERRORS, *NESTING_ERRORS) as error:
            raise ValueError(f"The chat template cannot be used: {_describe(error)}.") from error
        except RequestError as error:
            raise ValueError(error.message) from error

    def uses(self, name: str) -> bool:
        """Whether the template uses a variable of this name: `tools`, `enable_thinking` ..."""
        return name in self._variables

    def render(self, messages: Sequence[JSON], tools: Sequence[JSON], **variables: Any) -> list[str]:
        """Return the prompt up to the assistant's answer, in pieces of text and ControlToken. Raises RequestError."""
        try:
            with self._sandbox.work.of_request(current_budget()):
                text = self._template.render(variables | _build_variables(messages, tools) | self._special)
        except TemplateError as error:
            raise RequestError(
                f"The model's chat template refused the input: {_describe(error)}.", param="input"
            ) from error
        except EXPRESSION_ERRORS as error:
            raise RequestError(
                "The model's chat template cannot process the structure of the input or the tools.", param="input"
            ) from error
        return [self._control_tokens.get(piece, piece) for piece in self._surrogate_pattern.split(text) if piece]

    def _verify(self, source: str, special: Mapping[str, str], control_tokens: Iterable[str]) -> None:
        """Raises ValueError unless a prompt equals the one that the template renders without surrogates."""
        plain = self._sandbox.from_string(self._parse(source))
        with self._sandbox.work.of_request(current_budget()):
            expected = plain.render({**_build_variables(SAMPLE, []), **special})
        pieces = self.render(SAMPLE, [])
        found = [piece for piece in pieces if isinstance(piece, ControlToken)]
        if "".join(pieces) != expected or found != _match_any(control_tokens).findall(expected):
            raise ValueError("it assembles control tokens from parts")

    def _parse(self, source: str) -> nodes.Template:
        return add_metering(self._sandbox.parse(source), self._sandbox)

    def _substitute_tree(self, tree: nodes.Template) -> nodes.Template:
        """Replace control tokens by their surrogates in every constant of the template."""
        for text in tree.find_all(nodes.TemplateData):
            text.data = self._substitute(text.data)
        for constant in tree.find_all(nodes.Const):
            if isinstance(constant.value, str):
                constant.value = self._substitute(constant.value)
        return tree

    def _substitute(self, text: str) -> str:
        return self._token_pattern.sub(lambda found: self._surrogates[found[0]], text)


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """A model's template for calls without tools and its template for calls with tools, often the same."""

    plain: ChatTemplate
    with_tools: ChatTemplate

    def uses(self, name: str) -> bool:
        """Whether a template uses a variable of this name: `enable_thinking` ..."""
        return self.plain.uses(name) or self.with_tools.uses(name)

    def render(self, messages: Sequence[JSON], tools: Sequence[JSON], **variables: Any) -> list[str]:
        """See `ChatTemplate.render`."""
        return (self.with_tools if tools else self.plain).render(messages, tools, **variables)


def _describe(error: Exception) -> str:
    """Return the message of an error on one line."""
    message = (error.message if isinstance(error, TemplateError) else None) or str(error)
    return " ".join(message.split()).rstrip(".")[:MAX_MESSAGE_CHARS]


def _match_any(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of these, as a group so that a split keeps it; without any it matches nothing."""
    return re.compile("(" + ("|".join(map(re.escape, texts)) or "(?!)") + ")")


def _build_variables(messages: Sequence[JSON], tools: Sequence[JSON]) -> JSON:
    return {"messages": messages, "tools": tools or None, "documents": None, "add_generation_prompt": True}


class _GenerationTag(Extension):
    """`{% generation %}` marks what a model is trained on; for rendering it is only a scope of variables."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _build_sandbox() -> BoundedSandbox:
    """Return a sandbox like the reference renderer's, without what no prompt needs."""
    sandbox = BoundedSandbox(  # text, not HTML
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
    sandbox.filters["tojson"] = sandbox.meter(_to_json, sandbox.charge_deep)
    sandbox.globals["raise_exception"] = _raise
    sandbox.globals["strftime_now"] = _now
    return sandbox


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  templates may pass them by position
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Return JSON as the reference renderer does; jinja2's own filter would write HTML entities."""
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > MAX_INDENT:
        raise WorkLimitExceeded("It indents JSON too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(date_format: str) -> str:
    if TOO_WIDE.search(date_format):
        raise WorkLimitExceeded("It formats the date with too large a width")
    return datetime.now().astimezone().strftime(date_format)
