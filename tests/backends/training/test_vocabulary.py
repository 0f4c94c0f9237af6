"""The tokenizer: it decodes to the original text, and a word has the same tokens wherever it occurs."""

from itertools import islice

import pytest

from backends.training import vocabulary
from backends.training.corpus import dialogues
from backends.training.prompt import render


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary.train_tokenizer(
        (render(each.messages, each.tools) for each in islice(dialogues("test"), 1500)), 600
    )


@pytest.mark.parametrize("text", ["Hello, world!", "  two  spaces\n\n", "Zürich 日本 😀", '{"a_b": 12.5}', "xKq-7?!"])
def test_decoding_restores_any_text(tokenizer, text):
    assert text == tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("before", ["", " ", "\n", '"', "_", "7", "Say: "])
def test_a_word_is_split_the_same_way_everywhere(tokenizer, before):
    word = tokenizer.encode("plimkora", add_special_tokens=False).ids
    found = tokenizer.encode(before + "plimkora.", add_special_tokens=False).ids

    assert word == [each for each in found if each in word][-len(word) :]


def test_control_tokens_are_single_tokens_and_padding_is_zero(tokenizer):
    for number, text in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
        assert [number] == tokenizer.encode(text, add_special_tokens=False).ids


def test_tags_of_calls_are_single_tokens_that_are_decoded(tokenizer):
    ids = tokenizer.encode("<tool_call>\n</tool_call>", add_special_tokens=False).ids

    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>\n</tool_call>"


def test_the_tokens_are_listed_in_the_order_of_their_ids(tokenizer):
    found = vocabulary.list_tokens(tokenizer)

    assert list(range(len(found))) == [tokenizer.token_to_id(token) for token in found]
