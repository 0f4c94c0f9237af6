"""headgate.json, and what is recognised without it."""

import json

import pytest

from backends.local.model.manifest import Manifest, read_manifest, recognise_reasoning, recognise_tool_format
from tests.chat_templates import CHAT_TEMPLATES, HERMES

THINK_TAGS = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("family", "expected"), [("hermes", "hermes"), ("llama", "llama"), ("mistral", "mistral"), ("gemma", None)]
)
def test_tool_formats_are_recognised_by_chat_templates(family, expected):
    """By the syntax in which they write calls of earlier turns."""
    assert expected == recognise_tool_format(CHAT_TEMPLATES[family], [])


@pytest.mark.parametrize(
    ("source", "added", "expected"),
    [
        ("{{ messages[0].content }}", ["<tool_call>"], None),
        ("{{ messages }} <tool_call>", [], None),
        ("{% if tools %}<tool_call>\n<function=name><parameter=a>{% endif %}", [], None),
        ("{% if tools %}[TOOL_CALLS]name[ARGS]{}{% endif %}", [], "mistral"),
        ("{% for tool in tools %}{{ '\"parameters\"' }}{% endfor %}", ["<|python_tag|>"], "llama"),
        ("{% for tool in tools %}{{ '\"parameters\"' }}{% endfor %}", [], None),
    ],
)
def test_an_unknown_syntax_is_not_recognised(source, added, expected):
    """A wrong guess would give callers invalid calls."""
    assert expected == recognise_tool_format(source, added)


@pytest.mark.parametrize(
    ("source", "added", "expected"),
    [
        ("", THINK_TAGS, THINK_TAGS),
        ("", ["<think>"], None),
        (HERMES, [], THINK_TAGS),
        ("[THINK]..[/THINK]", [], ("[THINK]", "[/THINK]")),
        ("", [], None),
    ],
)
def test_reasoning_is_recognised_by_both_tags(source, added, expected):
    """Both must be tokens, or in the template."""
    assert expected == recognise_reasoning(source, added)


@pytest.mark.parametrize(
    ("given", "tools", "reasoning"),
    [
        ({}, "hermes", THINK_TAGS),
        ({"tool_format": None, "reasoning": False}, None, None),
        ({"tool_format": "mistral", "reasoning": True}, "mistral", THINK_TAGS),
        ({"reasoning": ["<a>", "</a>"]}, "hermes", ("<a>", "</a>")),
    ],
)
def test_the_manifest_overrides_what_is_recognised(given, tools, reasoning):
    """Even when it denies a capability."""
    manifest = Manifest.model_validate(given)

    assert (tools, reasoning) == (manifest.find_tool_format(HERMES, []), manifest.find_reasoning(HERMES, []))


def test_a_manifest_is_read(tmp_path):
    """A missing one has defaults; keys of later versions are allowed."""
    path = tmp_path / "headgate.json"
    path.write_text(json.dumps({"layers": 2, "json_style": {"key_separator": ":"}, "later": 1}))
    manifest = read_manifest(path)

    assert (manifest.layers, manifest.json_style.item_separator, manifest.json_style.key_separator) == (2, ", ", ":")
    assert Manifest() == read_manifest(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": 0}, "headgate.json: layers: Input should be greater than 0."),
        ({"sliding_window": -1}, "headgate.json: sliding_window: Input should be"),
        ({"tool_format": "x"}, "headgate.json: tool_format: Input should be"),
        ({"reasoning": ["<a>"]}, "headgate.json: reasoning"),
        ({"json_style": {"item_separator": ";"}}, "headgate.json: json_style.item_separator: Input"),
        ([], "headgate.json is not a JSON object"),
    ],
)
def test_a_wrong_key_is_named(tmp_path, given, message):
    """With the expected value."""
    (tmp_path / "headgate.json").write_text(json.dumps(given))

    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "headgate.json")
