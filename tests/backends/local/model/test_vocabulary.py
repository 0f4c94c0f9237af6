"""The vocabularies of the engine and the tokenizer must match."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from backends.local.model.vocabulary import check_vocabulary, read_vocabulary


def tokenizer(**ids):
    return Tokenizer(models.WordLevel(ids, unk_token="a"))


@pytest.mark.parametrize("vocabulary", [["a", "b"], ["a", "b", "<extra_id_0>", "<extra_id_7>"]])
def test_equal_vocabularies_are_accepted(vocabulary):
    """With and without padding."""
    check_vocabulary(Path("m"), vocabulary, tokenizer(a=0, b=1))


def test_a_gap_may_be_padded():
    """The tokenizer has no token of that id."""
    check_vocabulary(Path("m"), ["a", "<extra_id_1>", "b"], tokenizer(a=0, b=2))


@pytest.mark.parametrize(
    ("vocabulary", "ids", "message"),
    [
        (
            ["a", "b"],
            {"a": 0, "b": 5000},
            "m: tokenizer.json has tokens up to number 5000, but vocabulary.json only 2.",
        ),
        (["b", "a"], {"a": 0, "b": 1}, "m: token 0 is 'a' in tokenizer.json, but 'b' in vocabulary.json."),
        (["a", "b", "c"], {"a": 0, "b": 1}, "m: token 2, 'c', of vocabulary.json is not in tokenizer.json."),
        (["a", "c", "b"], {"a": 0, "b": 2}, "m: token 1, 'c', of vocabulary.json is not in tokenizer.json."),
        (["a", "<extra_id_0>"], {"a": 0, "b": 1}, "m: token 1 is 'b' in tokenizer.json, but '<extra_id_0>' in voc"),
    ],
)
def test_different_vocabularies_are_refused(vocabulary, ids, message):
    """The error names the first token that differs."""
    with pytest.raises(ValueError, match=message):
        check_vocabulary(Path("m"), vocabulary, tokenizer(**ids))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "is not a list of tokens"),
        ([], "is not a list"),
        ([1], "is not a list"),
        (["a", "b", "a"], "token 'a' twice"),
    ],
)
def test_an_invalid_vocabulary_is_refused(tmp_path, content, message):
    """A duplicate token would have two ids."""
    (tmp_path / "vocabulary.json").write_text(json.dumps(content))

    with pytest.raises(ValueError, match=message):
        read_vocabulary(tmp_path / "vocabulary.json")
