"""The chat template: its output, and that training and serving use the same bytes."""

from pathlib import Path
from random import Random

import pytest

from backends.training.corpus import SUBJECTS, lesson
from backends.training.prompt import END, TEMPLATE, render, split_last_answer

DEMO = Path(__file__).parents[3] / "backends" / "demo"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
        "required": ["city"],
    },
}
CALL = {"function": {"name": "get_weather", "arguments": {"city": "Bogotá"}}}


def test_the_demo_model_has_the_template_of_the_training():
    assert (DEMO / "chat_template.jinja").read_bytes() == TEMPLATE.read_bytes()


def test_messages_are_chatml():
    expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <b>!<|im_end|>\n<|im_start|>assistant\n"
    actual = render(
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi <b>!"}], answer_next=True
    )

    assert expected == actual


def test_functions_are_one_line_each_after_the_instructions():
    expected = (
        "<|im_start|>system\nBe kind.\nFunctions:\n"
        '{"name": "get_weather", "description": "Get the weather.", '
        '"required": {"city": "string"}, "optional": {"unit": ["c", "f"]}}<|im_end|>\n'
    )

    assert expected == render([{"role": "system", "content": "Be kind."}], [WEATHER])


def test_the_chat_form_of_a_function_is_the_same_line():
    chat = {"type": "function", "function": {key: WEATHER[key] for key in ("name", "description", "parameters")}}

    assert render([], [WEATHER]) == render([], [chat])


def test_description_and_parameters_of_a_function_are_optional():
    expected = '<|im_start|>system\nFunctions:\n{"name": "ping", "description": "", "required": {}}<|im_end|>\n'

    assert expected == render([], [{"type": "function", "name": "ping", "description": None, "parameters": None}])


def test_calls_and_results_are_in_the_form_of_hermes():
    expected = (
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bogotá"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bogotá"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n12<|im_end|>\n"
    )
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}

    assert expected == render([calls, {"role": "tool", "content": "12"}])


def test_later_system_messages_keep_their_position():
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>system\nBe brief.<|im_end|>\n"

    assert expected == render([{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}])


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_prompt_with_its_answer_is_the_whole_conversation(subject):
    """A prompt in serving is byte for byte the beginning of a training text."""
    for number in range(40):
        found = lesson(Random(f"{subject}{number}"), subject)
        question, answer = split_last_answer(found.messages, found.tools)

        assert render(found.messages, found.tools) == question + answer + END + "\n"
