"""headgate.json, and what is recognised where it says nothing."""

import json

import pytest

from backends.local.model.card import Card, read_card, recognised_reasoning, recognised_tool_format
from tests.families import FAMILIES, HERMES

THINKS = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("family", "expected"), [("hermes", "hermes"), ("llama", "llama"), ("mistral", "mistral"), ("gemma", None)]
)
def test_families_are_recognised_by_their_templates(family, expected):
    """By how they write calls of earlier turns."""
    assert expected == recognised_tool_format(FAMILIES[family], [])


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
def test_what_is_not_written_in_a_known_way_is_not_recognised(source, added, expected):
    """A wrong guess would hand callers broken calls."""
    assert expected == recognised_tool_format(source, added)


@pytest.mark.parametrize(
    ("source", "added", "expected"),
    [
        ("", THINKS, THINKS),
        ("", ["<think>"], None),
        (HERMES, [], THINKS),
        ("[THINK]..[/THINK]", [], ("[THINK]", "[/THINK]")),
        ("", [], None),
    ],
)
def test_thoughts_are_recognised_by_both_tags(source, added, expected):
    """As tokens, or in the template."""
    assert expected == recognised_reasoning(source, added)


@pytest.mark.parametrize(
    ("given", "tools", "reasoning"),
    [
        ({}, "hermes", THINKS),
        ({"tool_format": None, "reasoning": False}, None, None),
        ({"tool_format": "mistral", "reasoning": True}, "mistral", THINKS),
        ({"reasoning": ["<a>", "</a>"]}, "hermes", ("<a>", "</a>")),
    ],
)
def test_what_the_card_says_stands_above_what_is_recognised(given, tools, reasoning):
    """Also when it says: none."""
    card = Card.model_validate(given)

    assert (tools, reasoning) == (card.tool_format_of(HERMES, []), card.reasoning_of(HERMES, []))


def test_a_card_is_read(tmp_path):
    """One that is not there says nothing; keys of later versions are no fault."""
    path = tmp_path / "headgate.json"
    path.write_text(json.dumps({"layers": 2, "json_style": {"key_separator": ":"}, "later": 1}))
    card = read_card(path)

    assert (card.layers, card.json_style.item_separator, card.json_style.key_separator) == (2, ", ", ":")
    assert Card() == read_card(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"layers": 0}, "headgate.json: layers: Input should be greater than 0."),
        ({"sliding_window": -1}, "headgate.json: sliding_window: Input should be"),
        ({"tool_format": "x"}, "headgate.json: tool_format: Input should be"),
        ({"reasoning": ["<a>"]}, "headgate.json: reasoning"),
        ({"json_style": {"item_separator": ";"}}, "headgate.json: json_style.item_separator: Input"),
        ([], "headgate.json is not a JSON object"),
    ],
)
def test_a_key_that_is_wrong_is_named(tmp_path, given, told):
    """With what it should be."""
    (tmp_path / "headgate.json").write_text(json.dumps(given))

    with pytest.raises(ValueError, match=told):
        read_card(tmp_path / "headgate.json")
