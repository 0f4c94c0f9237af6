"""Output of models in chunks of any size, in every syntax of tool calls."""

import pytest
from hypothesis import given

from backends.local.speech.hermes import HERMES
from backends.local.speech.llama import LLAMA
from backends.local.speech.mistral import MISTRAL, MISTRAL_V11
from tests.backends.local.speech.parsing import parse, split_everywhere, splits
from tests.examples import NO_DEADLINE

HERMES_WORDS = [
    "<tool_call>", "</tool_call>", "\n", " ", "Hi", '{"name": "f", "arguments": {"a": "</tool_call>"}}',
    '{"name": "no", "arguments": {}}', '{"name": "g"', "}", "{", '"', "<tool_", "call>", "\\",
    '{"name": "patch", "input":\n', '{"name": "note", "arguments": {"input": "a\\nb"}}',
]  # fmt: skip
LLAMA_WORDS = [
    "<|python_tag|>", "; ", ";", "\n", " ", "Hi", '{"name": "f", "parameters": {"a": "; {"}}', "{}", '{"x": [1]}',
    '{"name": "no", "parameters": {}}', '{"name": "g"', "}", "{", '"', "<|python", "_tag|>", "\\", "name",
    '{"name": "patch", "input":\n', '{"type": "function", "name": "g", "parameters": {}}',
]  # fmt: skip
MISTRAL_WORDS = [
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[", "]", ", ", ",", "\n", " ", "Hi", "f", "g", "note", "patch", "abc123def",
    '{"name": "f", "arguments": {"a": "]"}}', '{"a": 1}', '{"input": "x"}', '{"name": "no", "arguments": {}}', "{", '"',
    "[TOOL", "_CALLS]", '[{"name": "patch", "input":\n',
]  # fmt: skip
MISTRAL_OUTPUTS = [
    'x [TOOL_CALLS]f[ARGS]{}[TOOL_CALLS] g {"a": "[ARGS]"} [TOOL',
    '[TOOL_CALLS] [{"name":"f"} , {"name":"g"} ] .',
    "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{[TOOL_CALLS]",
    '[TOOL_CALLS][{"name":"f","arguments":{"a":"',
]
OUTPUTS = [
    (
        HERMES,
        'a < b\n\n<tool <tool_call>{"name": "f", "arguments": {"x": "<"}}</tool_call>  <tool_call>no</tool_call> c\n',
    ),
    (HERMES, '<tool_call>{"name":"f","arguments":{}}</tool_call>\n<tool_call>{"name":"g"'),
    (HERMES, 'x <tool_call>\n{"name": "patch", "input":\n*** </tool_call>'),
    (LLAMA, '{"name":"f","parameters":{}}; {"name":"g","parameters":{}} <|python_tag|>no'),
    (LLAMA, 'x <|python_tag|>{"name": "g", "parameters": {"a": "'),
    (LLAMA, '{"a": "what is output here, is it JSON?"} more'),
    (LLAMA, '\n{"name": "unknown", "parameters": {}}; {}'),
    *((tool_format, output) for tool_format in (MISTRAL, MISTRAL_V11) for output in MISTRAL_OUTPUTS),
]


@pytest.mark.parametrize(("tool_format", "output"), OUTPUTS)
@pytest.mark.parametrize("truncated", [False, True])
def test_chunk_boundaries_do_not_change_the_result(tool_format, output, truncated):
    """Split at every position, at every two, and into characters, the output has the same segments."""
    whole = parse(tool_format, output, truncated=truncated)
    every = split_everywhere(output)

    assert [chunks for chunks in every if parse(tool_format, *chunks, truncated=truncated) != whole] == []


@NO_DEADLINE
@given(splits(HERMES_WORDS), splits(LLAMA_WORDS), splits(MISTRAL_WORDS))
def test_chunk_boundaries_do_not_change_the_result_of_any_output(hermes, llama, mistral):
    """Random outputs, with tags in the wrong places, in random chunks."""
    for tool_format, (output, chunks) in (
        (HERMES, hermes), (LLAMA, llama), (MISTRAL, mistral), (MISTRAL_V11, mistral),
    ):  # fmt: skip
        assert parse(tool_format, output) == parse(tool_format, *chunks)
        assert parse(tool_format, output, truncated=True) == parse(tool_format, *chunks, truncated=True)
