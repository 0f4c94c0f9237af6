"""What is written beside the weights."""

import json

import pytest

from backends.local.conversion.checkpoint import read_checkpoint
from backends.local.conversion.folder import card, ends, fitting, write_beside
from backends.local.conversion.original import listed
from tests.checkpoints import VOCABULARY, write_checkpoint
from tests.models import END, NOTHING


@pytest.fixture
def checkpoint(tmp_path):
    return read_checkpoint(write_checkpoint(tmp_path / "from"))


@pytest.fixture
def vocabulary(checkpoint):
    return listed(checkpoint.folder / "tokenizer.json", VOCABULARY)


def test_the_vocabulary_is_listed_by_number(checkpoint, vocabulary):
    """And filled up to the size of the weights."""
    assert vocabulary[:3] == [NOTHING, "<|im_start|>", END]
    assert [f"<extra_id_{number}>" for number in range(VOCABULARY - 10, VOCABULARY)] == vocabulary[-10:]


def test_the_card_tells_what_the_engine_does_not(checkpoint, vocabulary):
    """All that serving needs to know."""
    assert card(checkpoint, vocabulary) == {
        "architecture": "llama", "context_length": 512, "sliding_window": None, "tool_format": "hermes",
        "reasoning": False, "eos": [END, NOTHING], "layers": 2, "heads": 4, "head_dim": 16, "vocabulary": VOCABULARY,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("generation", "told", "expected"),
    [
        (None, None, [END]),
        (0, END, [END, NOTHING]),
        ([0, 2], "!", [END, NOTHING, "!"]),
        ([], {"content": "!"}, [END, "!"]),
    ],
)
def test_all_ends_of_an_answer_are_known(checkpoint, vocabulary, generation, told, expected):
    """By the config, the settings of generation, one or several, and the tokenizer."""
    (checkpoint.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    (checkpoint.folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": told}))

    assert expected == ends(checkpoint, vocabulary)


def test_an_end_that_is_no_token_is_refused(checkpoint, vocabulary):
    """It would be read past the vocabulary's end."""
    (checkpoint.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 99999]}))

    with pytest.raises(ValueError, match="eos_token_id 99999 is not the id of a token"):
        ends(checkpoint, vocabulary)


def test_tokens_without_weights_are_left_out():
    """Some tokenizers have tokens for pictures that the model of text does not know."""
    tokenizer = {"model": {}, "added_tokens": [{"id": 3, "content": "a"}, {"id": 4, "content": "b"}]}

    assert fitting(tokenizer, 4) == {"model": {}, "added_tokens": [{"id": 3, "content": "a"}]}
    assert tokenizer == fitting(tokenizer, 5)


@pytest.mark.parametrize("size", [VOCABULARY, VOCABULARY - 11])
def test_all_files_are_written(checkpoint, tmp_path, size):
    """Copies of those that there are, byte for byte; the tokenizer without what has no weights."""
    out = tmp_path / "to"
    out.mkdir()
    (out / "vocabulary.json").write_text(json.dumps(listed(checkpoint.folder / "tokenizer.json", size)))
    write_beside(checkpoint, out)
    same = ["chat_template.jinja", "generation_config.json", "tokenizer_config.json"]

    assert sorted([*same, "headgate.json", "tokenizer.json", "vocabulary.json"]) == sorted(
        path.name for path in out.iterdir()
    )
    assert all((out / name).read_bytes() == (checkpoint.folder / name).read_bytes() for name in same)
    assert max(token["id"] for token in json.loads((out / "tokenizer.json").read_text())["added_tokens"]) < size
