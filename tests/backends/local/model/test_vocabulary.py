"""The engine's vocabulary and the tokenizer's are one."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from backends.local.model.vocabulary import compare, read_vocabulary


def tokenizer(**ids):
    return Tokenizer(models.WordLevel(ids, unk_token="a"))


@pytest.mark.parametrize("vocabulary", [["a", "b"], ["a", "b", "<extra_id_0>", "<extra_id_7>"]])
def test_the_same_tokens_pass(vocabulary):
    """Filled up or not."""
    compare(Path("m"), vocabulary, tokenizer(a=0, b=1))


def test_a_gap_may_be_filled():
    """Where a tokenizer has no token of that number."""
    compare(Path("m"), ["a", "<extra_id_1>", "b"], tokenizer(a=0, b=2))


@pytest.mark.parametrize(
    ("vocabulary", "ids", "told"),
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
def test_other_tokens_are_refused(vocabulary, ids, told):
    """By the first that differs, however many there are."""
    with pytest.raises(ValueError, match=told):
        compare(Path("m"), vocabulary, tokenizer(**ids))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "is not a list of tokens"),
        ([], "is not a list"),
        ([1], "is not a list"),
        (["a", "b", "a"], "token 'a' twice"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path, content, told):
    """A token that is there twice would have two numbers."""
    (tmp_path / "vocabulary.json").write_text(json.dumps(content))

    with pytest.raises(ValueError, match=told):
        read_vocabulary(tmp_path / "vocabulary.json")
