"""Renders dialogues with the chat template that is part of the model, so training and serving use the same bytes."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.training.dialogue import Json

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
START, END, NOTHING = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"


def render(messages: Sequence[Json], tools: Sequence[Json] = (), *, answer_next: bool = False) -> str:
    """Return the conversation as one string; with `answer_next` it ends where the assistant's answer begins."""
    return _template().render(
        messages=messages, tools=tools, add_generation_prompt=answer_next, bos_token=START, eos_token=END
    )


def split_last_answer(messages: Sequence[Json], tools: Sequence[Json] = ()) -> tuple[str, str]:
    """Return the prompt before the last message, and the text of that message as the model should generate it."""
    question = render(messages[:-1], tools, answer_next=True)
    return question, render(messages, tools).removeprefix(question).removesuffix(END + "\n")


@functools.cache
def _template() -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["tojson"] = _to_json
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
