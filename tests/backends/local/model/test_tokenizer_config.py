"""Chat templates and special tokens in the files of a model folder."""

import json

import pytest

from backends.local.model.tokenizer_config import read_chat_templates, read_special_tokens


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
def test_chat_templates_are_read_from_the_tokenizer_config(tmp_path, given, expected):
    """There may be one, or several by name."""
    write(tmp_path, "tokenizer_config.json", {"chat_template": given})

    assert expected == read_chat_templates(tmp_path)


def test_a_template_file_takes_precedence(tmp_path):
    """As in the reference renderer."""
    write(tmp_path, "tokenizer_config.json", {"chat_template": "old"})
    write(tmp_path, "chat_template.jinja", "new")

    assert read_chat_templates(tmp_path) == ("new", "new")


@pytest.mark.parametrize("given", [7, [], ["one"], [{"name": "tool_use", "template": "x"}], [{"name": "default"}]])
def test_an_invalid_chat_template_is_refused(tmp_path, given):
    """The error names the file."""
    write(tmp_path, "tokenizer_config.json", {"chat_template": given})

    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template is neither a template nor a list"):
        read_chat_templates(tmp_path)


def test_a_folder_without_a_chat_template_is_refused(tmp_path):
    """Prompts for the model would be unknown."""
    with pytest.raises(OSError, match=r"has no chat_template\.jinja, and tokenizer_config\.json has no chat template"):
        read_chat_templates(tmp_path)


def test_special_tokens_are_found_by_name(tmp_path):
    """The engine's config takes precedence; a token may be an object, or null."""
    write(tmp_path, "tokenizer_config.json", {"bos_token": "no", "eos_token": {"content": "</s>"}, "pad_token": None})
    write(tmp_path, "special_tokens_map.json", {"eos_token": "no", "unk_token": {"content": "<unk>"}, "x_token": "x"})

    assert read_special_tokens(tmp_path, {"bos_token": "<s>", "unk_token": ""}) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
