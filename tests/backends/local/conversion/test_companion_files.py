"""The files beside the weights."""

import json

import pytest

from backends.local.conversion.checkpoint import read_checkpoint
from backends.local.conversion.companion_files import (
    build_manifest,
    find_end_tokens,
    trim_tokenizer,
    write_companion_files,
)
from backends.local.conversion.source_model import list_tokens
from tests.checkpoints import VOCABULARY, write_checkpoint
from tests.models import END, NOTHING


@pytest.fixture
def checkpoint(tmp_path):
    return read_checkpoint(write_checkpoint(tmp_path / "from"))


@pytest.fixture
def vocabulary(checkpoint):
    return list_tokens(checkpoint.folder / "tokenizer.json", VOCABULARY)


def test_the_vocabulary_is_listed_by_id(checkpoint, vocabulary):
    """It is padded to the size of the weights."""
    assert vocabulary[:3] == [NOTHING, "<|im_start|>", END]
    assert [f"<extra_id_{number}>" for number in range(VOCABULARY - 10, VOCABULARY)] == vocabulary[-10:]


def test_the_manifest_contains_what_the_engine_lacks(checkpoint, vocabulary):
    """Everything else that serving needs."""
    assert build_manifest(checkpoint, vocabulary) == {
        "architecture": "llama", "context_length": 512, "sliding_window": None, "tool_format": "hermes",
        "reasoning": False, "eos": [END, NOTHING], "layers": 2, "heads": 4, "head_dim": 16, "vocabulary": VOCABULARY,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("generation", "eos_token", "expected"),
    [
        (None, None, [END]),
        (0, END, [END, NOTHING]),
        ([0, 2], "!", [END, NOTHING, "!"]),
        ([], {"content": "!"}, [END, "!"]),
    ],
)
def test_end_tokens_come_from_all_files(checkpoint, vocabulary, generation, eos_token, expected):
    """From the config, the generation config (one or several) and the tokenizer."""
    (checkpoint.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    (checkpoint.folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos_token}))

    assert expected == find_end_tokens(checkpoint, vocabulary)


def test_an_unknown_end_token_is_refused(checkpoint, vocabulary):
    """Its id is beyond the vocabulary."""
    (checkpoint.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 99999]}))

    with pytest.raises(ValueError, match="eos_token_id 99999 is not the id of a token"):
        find_end_tokens(checkpoint, vocabulary)


def test_tokens_without_weights_are_removed():
    """Some tokenizers have tokens for images that a text model lacks."""
    tokenizer = {"model": {}, "added_tokens": [{"id": 3, "content": "a"}, {"id": 4, "content": "b"}]}

    assert trim_tokenizer(tokenizer, 4) == {"model": {}, "added_tokens": [{"id": 3, "content": "a"}]}
    assert tokenizer == trim_tokenizer(tokenizer, 5)


@pytest.mark.parametrize("size", [VOCABULARY, VOCABULARY - 11])
def test_all_files_are_written(checkpoint, tmp_path, size):
    """As byte-for-byte copies; the tokenizer without tokens that have no weights."""
    out = tmp_path / "to"
    out.mkdir()
    (out / "vocabulary.json").write_text(json.dumps(list_tokens(checkpoint.folder / "tokenizer.json", size)))
    write_companion_files(checkpoint, out)
    same = ["chat_template.jinja", "generation_config.json", "tokenizer_config.json"]

    assert sorted([*same, "headgate.json", "tokenizer.json", "vocabulary.json"]) == sorted(
        path.name for path in out.iterdir()
    )
    assert all((out / name).read_bytes() == (checkpoint.folder / name).read_bytes() for name in same)
    assert max(token["id"] for token in json.loads((out / "tokenizer.json").read_text())["added_tokens"]) < size
