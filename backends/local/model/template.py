"""Renders a conversation with the model's own chat template, and tells the template's control tokens from look-alikes.

A control token in the template's own text is rendered as a lone surrogate that stands for it. Text that came as JSON
holds no lone surrogate, so whatever else looks like a control token in the result was written by somebody outside.
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

from backends.local.model.pace import paced
from backends.local.model.sandbox import WIDE, WORK, BoundedSandbox, TooMuchWork
from proxy.wire.errors import RequestError

JSON = dict[str, Any]
FIRST_STAND_IN = 0xD800
STAND_INS = 2048
# The longest that are known have a tenth of this; compiling takes about 1 s for a million.
MAX_SOURCE_CHARS = 200_000
MAX_INDENT = 100
SHOWN_CHARS = 300
# What expressions raise over values of a shape that the template's author did not think of.
ODD_SHAPES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
# What compilers raise over expressions that are nested deeper than they go.
TOO_DEEP = (MemoryError, SyntaxError)
SAMPLE = [{"role": role, "content": "a b"} for role in ("user", "assistant", "user")]


class Control(str):
    """A control token that the template itself wrote."""

    __slots__ = ()


class ChatTemplate:
    """Raises ValueError for a template that cannot be compiled, takes too long, or whose control tokens cannot be told.

    `special` are the tokens that templates know by name: bos_token, eos_token ...
    """

    def __init__(self, source: str, controls: Iterable[str], special: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise ValueError(f"The chat template has {len(source)} characters; the limit is {MAX_SOURCE_CHARS}.")
        longest_first = sorted(controls, key=len, reverse=True)
        own_words = "".join([source, *special.values()])
        written = [control for control in longest_first if control in own_words]
        if len(written) > STAND_INS:
            raise ValueError(f"The chat template uses {len(written)} control tokens; the limit is {STAND_INS}.")
        self._stand_in = {control: chr(FIRST_STAND_IN + number) for number, control in enumerate(written)}
        self._meaning = {stand_in: Control(control) for control, stand_in in self._stand_in.items()}
        self._controls = _any_of(written)
        self._stand_ins = _any_of(self._meaning)
        self._special = {name: self._marked(token) for name, token in special.items()}
        self._sandbox = _sandbox()
        try:
            self._reads = find_undeclared_variables(self._sandbox.parse(source))
            self._template = self._sandbox.from_string(self._mark(self._tree(source)))
            self._verify(source, special, longest_first)
        except (TemplateError, *ODD_SHAPES, *TOO_DEEP) as error:
            raise ValueError(f"The chat template cannot be used: {_told(error)}.") from error
        except RequestError as error:
            raise ValueError(error.message) from error

    def reads(self, name: str) -> bool:
        """Whether the template looks at a variable of this name: `tools`, `enable_thinking` ..."""
        return name in self._reads

    def render(self, messages: Sequence[JSON], tools: Sequence[JSON], **variables: Any) -> list[str]:
        """The prompt, up to where the assistant is to speak, in pieces of text and Control. Raises RequestError."""
        self._sandbox.work.left = WORK
        try:
            text = self._template.render(variables | _variables(messages, tools) | self._special)
        except TemplateError as error:
            raise RequestError(
                f"The model's chat template refused the input: {_told(error)}.", param="input"
            ) from error
        except ODD_SHAPES as error:
            raise RequestError(
                "The model's chat template cannot read the input or the tools as they are.", param="input"
            ) from error
        return [self._meaning.get(piece, piece) for piece in self._stand_ins.split(text) if piece]

    def _verify(self, source: str, special: Mapping[str, str], controls: Iterable[str]) -> None:
        """Compare a prompt with what the template says when nothing stands in for anything."""
        plain = self._sandbox.from_string(self._tree(source))
        self._sandbox.work.left = WORK
        expected = plain.render({**_variables(SAMPLE, []), **special})
        pieces = self.render(SAMPLE, [])
        told = [piece for piece in pieces if isinstance(piece, Control)]
        if "".join(pieces) != expected or told != _any_of(controls).findall(expected):
            raise ValueError("it puts control tokens together from parts")

    def _tree(self, source: str) -> nodes.Template:
        return paced(self._sandbox.parse(source), self._sandbox)

    def _mark(self, tree: nodes.Template) -> nodes.Template:
        """Put the stand-ins in the place of control tokens in all that the template writes of its own."""
        for text in tree.find_all(nodes.TemplateData):
            text.data = self._marked(text.data)
        for constant in tree.find_all(nodes.Const):
            if isinstance(constant.value, str):
                constant.value = self._marked(constant.value)
        return tree

    def _marked(self, text: str) -> str:
        return self._controls.sub(lambda found: self._stand_in[found[0]], text)


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """A model's template for calls without tools and its template for calls with tools, often the same."""

    plain: ChatTemplate
    with_tools: ChatTemplate

    def reads(self, name: str) -> bool:
        """Whether a template looks at a variable of this name: `enable_thinking` ..."""
        return self.plain.reads(name) or self.with_tools.reads(name)

    def render(self, messages: Sequence[JSON], tools: Sequence[JSON], **variables: Any) -> list[str]:
        """See `ChatTemplate.render`."""
        return (self.with_tools if tools else self.plain).render(messages, tools, **variables)


def _told(error: Exception) -> str:
    """What went wrong, on one line."""
    told = (error.message if isinstance(error, TemplateError) else None) or str(error)
    return " ".join(told.split()).rstrip(".")[:SHOWN_CHARS]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these, as a group so that a split keeps it; without any, it matches nothing."""
    return re.compile("(" + ("|".join(map(re.escape, texts)) or "(?!)") + ")")


def _variables(messages: Sequence[JSON], tools: Sequence[JSON]) -> JSON:
    return {"messages": messages, "tools": tools or None, "documents": None, "add_generation_prompt": True}


class _Generation(Extension):
    """`{% generation %}` marks what a model is trained on; in use it is as if only its variables were its own."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own way

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _sandbox() -> BoundedSandbox:
    """What the reference renderer gives templates, less what no prompt needs: so they render as they were trained."""
    sandbox = BoundedSandbox(  # text, not HTML
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    sandbox.filters["tojson"] = sandbox.measured(_to_json, sandbox.read)
    sandbox.globals["raise_exception"] = _raise
    sandbox.globals["strftime_now"] = _now
    return sandbox


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  templates may give them in this order
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """As the reference has it: jinja2's own would write HTML entities."""
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > MAX_INDENT:
        raise TooMuchWork("It indents JSON too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    if WIDE.search(form):
        raise TooMuchWork("It writes the date too wide")
    return datetime.now().astimezone().strftime(form)
