"""Chat templates and special tokens, wherever a model's folder has them."""

import json

import pytest

from backends.local.model.tokenizer_config import special_tokens_in, templates_in


def write(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("one", ("one", "one")),
        ([{"name": "default", "template": "one"}], ("one", "one")),
        ([{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}], ("one", "two")),
        ([{"name": "rag", "template": "x"}, {"name": "default", "template": "one"}], ("one", "one")),
        ({"default": "one", "tool_use": "two"}, ("one", "two")),
    ],
)
def test_templates_of_the_tokenizers_config(tmp_path, given, expected):
    """One, or several by name."""
    write(tmp_path, "tokenizer_config.json", {"chat_template": given})

    assert expected == templates_in(tmp_path)


def test_a_template_of_its_own_wins(tmp_path):
    """As in the reference."""
    write(tmp_path, "tokenizer_config.json", {"chat_template": "old"})
    write(tmp_path, "chat_template.jinja", "new")

    assert templates_in(tmp_path) == ("new", "new")


@pytest.mark.parametrize("given", [7, [], ["one"], [{"name": "tool_use", "template": "x"}], [{"name": "default"}]])
def test_what_is_no_template_is_refused(tmp_path, given):
    """By the file it stands in."""
    write(tmp_path, "tokenizer_config.json", {"chat_template": given})

    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template is neither a template nor a list"):
        templates_in(tmp_path)


def test_a_folder_without_any_template_is_refused(tmp_path):
    """Nobody could speak to the model as it was trained."""
    with pytest.raises(OSError, match=r"has no chat_template\.jinja, and tokenizer_config\.json has no chat template"):
        templates_in(tmp_path)


def test_special_tokens_are_found_by_name(tmp_path):
    """The engine's own names come first; a token may be an object, or nothing."""
    write(tmp_path, "tokenizer_config.json", {"bos_token": "no", "eos_token": {"content": "</s>"}, "pad_token": None})
    write(tmp_path, "special_tokens_map.json", {"eos_token": "no", "unk_token": {"content": "<unk>"}, "x_token": "x"})

    assert special_tokens_in(tmp_path, {"bos_token": "<s>", "unk_token": ""}) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
