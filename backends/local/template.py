"""Renders a conversation with the model's own chat template, and tells the template's control tokens from look-alikes.

A control token in the template's own text is rendered as a lone surrogate that stands for it. Text that came as JSON
holds no lone surrogate, so whatever else looks like a control token in the result was written by somebody outside.
Source: https://huggingface.co/docs/transformers/chat_templating
"""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from proxy.wire.errors import RequestError

JSON = dict[str, Any]
FIRST_STAND_IN = 0xD800
STAND_INS = 2048
# What expressions raise over values of a shape that the template's author did not think of.
ODD_SHAPES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
SAMPLE = [{"role": role, "content": "a b"} for role in ("user", "assistant", "user")]


class Control(str):
    """A control token that the template itself wrote."""

    __slots__ = ()


class ChatTemplate:
    """Raises ValueError for a template that cannot be compiled, or whose control tokens cannot be told."""

    def __init__(self, source: str, controls: Iterable[str], *, bos_token: str, eos_token: str) -> None:
        longest_first = sorted(controls, key=len, reverse=True)
        written = [control for control in longest_first if control in source + bos_token + eos_token]
        if len(written) > STAND_INS:
            raise ValueError(f"The chat template uses {len(written)} control tokens; the limit is {STAND_INS}.")
        self._stand_in = {control: chr(FIRST_STAND_IN + number) for number, control in enumerate(written)}
        self._meaning = {stand_in: Control(control) for control, stand_in in self._stand_in.items()}
        self._controls = _any_of(written)
        self._stand_ins = _any_of(self._meaning)
        special = {"bos_token": bos_token, "eos_token": eos_token}
        self._special = {name: self._marked(token) for name, token in special.items()}
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._mark(tree)
            self._template = environment.from_string(tree)
            self._verify(environment.from_string(source).render(_variables(SAMPLE, []) | special), longest_first)
        except (TemplateError, *ODD_SHAPES) as error:
            raise ValueError(f"The chat template cannot be used: {str(error).rstrip('.')}.") from error
        except RequestError as error:
            raise ValueError(error.message) from error

    def render(self, messages: Sequence[JSON], tools: Sequence[JSON]) -> list[str]:
        """The prompt, up to where the assistant is to speak, in pieces of text and Control. Raises RequestError."""
        try:
            text = self._template.render(_variables(messages, tools) | self._special)
        except TemplateError as error:
            raise RequestError(f"The model's chat template refused the input: {error}.", param="input") from error
        except ODD_SHAPES as error:
            raise RequestError(
                "The model's chat template cannot read the input or the tools as they are.", param="input"
            ) from error
        return [self._meaning.get(piece, piece) for piece in self._stand_ins.split(text) if piece]

    def _verify(self, expected: str, controls: Iterable[str]) -> None:
        """Compare a prompt with what the template says when nothing stands in for anything."""
        pieces = self.render(SAMPLE, [])
        told = [piece for piece in pieces if isinstance(piece, Control)]
        if "".join(pieces) != expected or told != _any_of(controls).findall(expected):
            raise ValueError("it puts control tokens together from parts")

    def _mark(self, tree: nodes.Template) -> None:
        """Put the stand-ins in the place of control tokens in all that the template writes of its own."""
        for text in tree.find_all(nodes.TemplateData):
            text.data = self._marked(text.data)
        for constant in tree.find_all(nodes.Const):
            if isinstance(constant.value, str):
                constant.value = self._marked(constant.value)

    def _marked(self, text: str) -> str:
        return self._controls.sub(lambda found: self._stand_in[found[0]], text)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these, as a group so that a split keeps it; without any, it matches nothing."""
    return re.compile("(" + ("|".join(map(re.escape, texts)) or "(?!)") + ")")


def _variables(messages: Sequence[JSON], tools: Sequence[JSON]) -> JSON:
    return {"messages": messages, "tools": tools or None, "documents": None, "add_generation_prompt": True}


class _Generation(Extension):
    """`{% generation %}` marks what a model is trained on; in use it is as if it were not there."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What the reference renderer gives templates, no more: so they render here as they were trained."""
    environment = ImmutableSandboxedEnvironment(  # text, not HTML
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  templates may give them in this order
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """As the reference has it: jinja2's own would write HTML entities."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
