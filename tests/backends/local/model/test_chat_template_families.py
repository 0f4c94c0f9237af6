"""Chat templates of common families render byte for byte as in the reference renderer."""

import itertools

import pytest

from backends.local.model.chat_template import ChatTemplate
from proxy.wire.errors import RequestError
from tests.chat_templates import CHAT_TEMPLATES, CONTROL_TOKENS

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": " Hello, <b>you</b> & é! "},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHi!"},
    {"role": "user", "content": "What is the weather in Oslo?"},
]
CALLED = [
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_0123456789",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Oslo", "days": [1, 2], "é": None}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_0123456789", "name": "get_weather", "content": '{"sky": "clear"}'},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Says "how" it is <there>',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
DIALOGUES = {"talk": TALK, "no system": TALK[1:], "one turn": TALK[:2], "called": TALK + CALLED, "odd": TALK[:2] * 2}
CASES = list(itertools.product(CHAT_TEMPLATES, DIALOGUES, (False, True)))
WRITTEN = {
    "hermes": '<|im_start|>system\nBe brief. \n\nFunctions you may call:\n<tools>\n{"name": "get_weather", "description": "Says \\"how\\" it is <there>", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}\n</tools>\nWrite <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>\n<|im_start|>user\n Hello, <b>you</b> & é! <|im_end|>\n<|im_start|>assistant\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": [1, 2], "é": null}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n{"sky": "clear"}\n</tool_response><|im_end|>\n<|im_start|>assistant\n',
    "llama": '<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nToday: 20 Nov 2026\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnswer with {"name": name, "parameters": {...}}.\n\n{\n    "type": "function",\n    "function": {\n        "name": "get_weather",\n        "description": "Says \\"how\\" it is <there>",\n        "parameters": {\n            "type": "object",\n            "properties": {\n                "city": {\n                    "type": "string"\n                }\n            },\n            "required": [\n                "city"\n            ]\n        }\n    }\n}\n\nHello, <b>you</b> & é!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo", "days": [1, 2], "é": null}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n{"sky": "clear"}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n',
    "mistral": '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "get_weather", "description": "Says "how" it is <there>", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}][/AVAILABLE_TOOLS][INST]  Hello, <b>you</b> & é! [/INST][TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo", "days": [1, 2], "é": null}, "id": "123456789"}]</s>[TOOL_RESULTS] {"content": {"sky": "clear"}, "call_id": "123456789"}[/TOOL_RESULTS]',
    "gemma": "<s><start_of_turn>user\nBe brief. \n\nHello, <b>you</b> & é!<end_of_turn>\n<start_of_turn>model\n",
}


def render(family, messages, tools, **variables):
    template = ChatTemplate(CHAT_TEMPLATES[family], [*CONTROL_TOKENS[family], "<s>", "</s>"], SPECIAL)
    try:
        return "".join(template.render(messages, tools, **variables))
    except RequestError as error:
        return error.message.removeprefix("The model's chat template refused the input: ").rstrip(".")


@pytest.mark.parametrize(("family", "dialogue", "with_tools"), CASES)
def test_prompts_equal_those_of_the_reference_renderer(family, dialogue, with_tools):
    """Compared directly, where transformers is installed."""
    pytest.importorskip("transformers")
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    tools = [TOOL, TOOL] if with_tools else []
    variables = {"date_string": "20 Nov 2026", "enable_thinking": False}
    try:
        expected = render_jinja_template(
            [DIALOGUES[dialogue]], tools or None, chat_template=CHAT_TEMPLATES[family], add_generation_prompt=True,
            **SPECIAL, **variables,
        )[0][0]  # fmt: skip
    except TemplateError as error:
        expected = str(error).rstrip(".")

    assert expected == render(family, DIALOGUES[dialogue], tools, **variables)


@pytest.mark.parametrize("family", CHAT_TEMPLATES)
def test_prompts_equal_recorded_ones_of_the_reference_renderer(family):
    """For the last turn of a dialogue, and for one with a tool."""
    tools = [] if family == "gemma" else [TOOL]
    messages = TALK[:2] if family == "gemma" else TALK[:2] + CALLED

    assert WRITTEN[family] == render(family, messages, tools, date_string="20 Nov 2026")
