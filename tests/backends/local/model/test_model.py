"""Model folders: what is read, and how a folder that is none is refused."""

import json
import re

import pytest

from backends.local.model import read_model
from tests.backends.local.model.conftest import TOOL, write
from tests.models import END, NOTHING, START, write_model


def test_a_folder_is_read(model):
    """With what CTranslate2's own files leave out."""
    assert (512, "hermes", {model.vocabulary.index(END)}) == (model.context_length, model.tool_format, model.stop_ids)


def test_all_tokens_that_end_an_answer_are_known(copy):
    """From config.json, generation_config.json and headgate.json together; one number or a list."""
    write(copy / "headgate.json", {"context_length": 8, "eos": [NOTHING]})
    write(copy / "generation_config.json", {"eos_token_id": 1})
    one = read_model(copy).stop_ids
    write(copy / "generation_config.json", {"eos_token_id": [1, 5]})

    assert [{0, 1, 2}, {0, 1, 2, 5}] == [one, read_model(copy).stop_ids]


def test_the_config_may_say_how_long_the_context_is(copy):
    """Where headgate.json says nothing, or something else; a folder needs none then."""
    other = read_model(copy, context_length=100).context_length
    (copy / "headgate.json").unlink()
    found = read_model(copy, context_length=100)

    assert (other, found.context_length, found.tool_format) == (100, 100, "hermes")


def test_a_model_reads_no_longer_a_context_than_it_was_made_for(copy):
    """Beyond it the answers would be nonsense, and nothing would say so."""
    write(copy / "headgate.json", {"context_length": 2048})
    with pytest.raises(ValueError, match=r"context_length is 2049, but the model in .* was made for 2048 tokens"):
        read_model(copy, context_length=2049)

    assert read_model(copy, context_length=2048).context_length == 2048


def test_headgate_json_may_say_that_a_model_calls_no_functions(copy):
    """Whatever its template looks like."""
    write(copy / "headgate.json", {"context_length": 100, "tool_format": None})

    assert read_model(copy).tool_format is None


def test_a_window_bounds_the_context(copy):
    """A model that looks back only so far would answer longer prompts wrong."""
    write(copy / "headgate.json", {"context_length": 100, "sliding_window": 40})

    assert read_model(copy).context_length == 40
    assert read_model(copy, context_length=30).context_length == 30
    with pytest.raises(ValueError, match=r"context_length is 50, but the model in .* looks back 40 tokens only"):
        read_model(copy, context_length=50)


def test_what_others_need_is_known_without_a_card(copy):
    """How much memory a token takes, by the weights themselves; how JSON is written, by what most models saw."""
    write(copy / "headgate.json", {"context_length": 100})
    model = read_model(copy)

    assert (
        model.kv_bytes_per_token, model.json_style.item_separator, model.json_style.key_separator, model.reasoning,
    ) == (1 * 2 * 128 * 4, ", ", ": ", None)  # fmt: skip
    write(copy / "headgate.json", {"context_length": 100, "layers": 3, "heads": 2, "head_dim": 8, "reasoning": True,
                                   "json_style": {"item_separator": ",", "key_separator": ":"}})  # fmt: skip
    model = read_model(copy)

    assert (
        model.kv_bytes_per_token, model.json_style.item_separator, model.reasoning,
    ) == (3 * 2 * 2 * 8 * 4, ",", ("<think>", "</think>"))  # fmt: skip


def test_templates_and_special_tokens_may_stand_in_the_tokenizers_config(copy):
    """As older models have them: one for calls with tools, one for all others, and tokens as objects."""
    (copy / "chat_template.jinja").unlink()
    write(copy / "config.json", {"bos_token": "", "eos_token": "", "unk_token": ""})
    write(copy / "tokenizer_config.json", {
        "bos_token": {"content": START, "lstrip": False},
        "eos_token": NOTHING,
        "chat_template": [
            {"name": "default", "template": "{{ bos_token }}plain {{ messages[0].content }}"},
            {"name": "tool_use", "template": "{{ eos_token }}tools {{ messages[0].content }}"},
        ],
    })  # fmt: skip
    model = read_model(copy)
    plain, tools = (model.template.render([{"role": "user", "content": "Hi"}], each) for each in ([], [TOOL]))

    assert (plain, tools) == ([START, "plain Hi"], [NOTHING, "tools Hi"])
    assert {0, 2} == model.stop_ids


@pytest.mark.parametrize(
    "name", ["model.bin", "config.json", "vocabulary.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()

    with pytest.raises(OSError, match=rf"^The model folder {copy} has no {name}(\.|, and tokenizer_config.json has)"):
        read_model(copy)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=f"There is no model folder {tmp_path}/none."):
        read_model(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", "{", "config.json is not JSON: Expecting property name"),
        ("config.json", [], "config.json is not a JSON object."),
        ("vocabulary.json", {}, "vocabulary.json is not a list of tokens."),
        ("vocabulary.json", [], "vocabulary.json is not a list of tokens."),
        ("vocabulary.json", [1], "vocabulary.json is not a list of tokens."),
        (
            "vocabulary.json",
            [NOTHING, START, END],
            "tokenizer.json has tokens up to number 325, but vocabulary.json only 3",
        ),
        ("vocabulary.json", [NOTHING, START, NOTHING], f"vocabulary.json has the token '{NOTHING}' twice"),
        ("model.bin", "", "model.bin is damaged or cut off, at byte 0 of 0."),
        ("model.bin", "no model", "model.bin is no model of CTranslate2's."),
        (
            "config.json",
            {"bos_token": START, "eos_token": END, "unk_token": None},
            "config.json: unk_token is no string",
        ),
        ("tokenizer_config.json", "[", "tokenizer_config.json is not JSON"),
        (
            "chat_template.jinja",
            "{% for i in range(10**9) %}{% endfor %}",
            "chat_template.jinja: The chat template cannot be used: Range too big",
        ),
        (
            "chat_template.jinja",
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "more work than a prompt may",
        ),
        (
            "headgate.json",
            {"context_length": 8, "json_style": {"item_separator": ";"}},
            "headgate.json: json_style.item_separator: Input",
        ),
        ("generation_config.json", {"eos_token_id": True}, "eos_token_id True is not the id of a token"),
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer that can be read"),
        ("chat_template.jinja", "{% if %}", "chat_template.jinja: The chat template cannot be used"),
        ("headgate.json", {}, "set context_length, or write it to headgate.json"),
        ("headgate.json", {"context_length": 0}, "headgate.json: context_length: Input should be greater than 0."),
        ("headgate.json", {"context_length": 8, "tool_format": "x"}, "headgate.json: tool_format: Input should be"),
        (
            "headgate.json",
            {"context_length": 8, "eos": ["none"]},
            "is to stop at 'none', which is not in its vocabulary",
        ),
        ("generation_config.json", {"eos_token_id": [10**6]}, "eos_token_id 1000000 is not the id of a token"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id x is not the id of a token"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(copy, name, content, told):
    """In one sentence that says what is wrong with it."""
    write(copy / name, content)

    with pytest.raises(ValueError, match=re.escape(told)):
        read_model(copy)


def test_text_that_is_not_utf_8_is_named(copy):
    (copy / "chat_template.jinja").write_bytes(b"\xff")

    with pytest.raises(ValueError, match=r"chat_template\.jinja is not UTF-8"):
        read_model(copy)


def test_a_tokenizer_of_another_model_is_refused(copy):
    """Its ids would mean other tokens than the engine's."""
    vocabulary = json.loads((copy / "vocabulary.json").read_text())
    vocabulary[100:102] = reversed(vocabulary[100:102])
    write(copy / "vocabulary.json", vocabulary)

    with pytest.raises(ValueError, match=r"token 100 is '.+' in tokenizer.json, but '.+' in vocabulary.json"):
        read_model(copy)


def test_a_vocabulary_must_be_as_long_as_the_weights(copy):
    """One token more or less would be read past their end."""
    vocabulary = json.loads((copy / "vocabulary.json").read_text())
    write(copy / "vocabulary.json", [*vocabulary, "<extra_id_0>"])

    with pytest.raises(ValueError, match=r"model\.bin has 326 embeddings, but vocabulary\.json 327 tokens"):
        read_model(copy)


def test_a_vocabulary_may_be_padded(tmp_path, folder):
    """Converters fill it up to the size of the weights; with tokens that the tokenizer lacks they are not."""
    padded = write_model(tmp_path / "padded", ["Hello"])
    tokenizer = json.loads((padded / "tokenizer.json").read_text())
    gone = tokenizer["added_tokens"].pop()["content"]
    write(padded / "tokenizer.json", tokenizer)
    vocabulary = json.loads((padded / "vocabulary.json").read_text())

    with pytest.raises(ValueError, match=rf"token {len(vocabulary) - 1}, '{gone}', of vocabulary.json is not in token"):
        read_model(padded)
    write(padded / "vocabulary.json", [*vocabulary[:-1], "<extra_id_0>"])

    assert len(vocabulary) == len(read_model(padded).vocabulary)


def test_weights_that_are_cut_off_are_refused(copy):
    """At any byte, before the engine sees them."""
    whole = (copy / "model.bin").read_bytes()
    for size in (3, 40, len(whole) // 2, len(whole) - 1):
        (copy / "model.bin").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model\.bin is damaged or cut off"):
            read_model(copy)


def test_a_model_must_know_where_to_end(copy):
    """Otherwise every answer would run into its limit."""
    write(copy / "headgate.json", {"context_length": 8})
    write(copy / "config.json", {"bos_token": START, "eos_token": ""})

    with pytest.raises(ValueError, match="names no token that ends an answer"):
        read_model(copy)


def test_a_model_of_no_known_size_is_refused(copy):
    """How much memory its answers take could not be told; headgate.json may tell it."""
    whole = (copy / "model.bin").read_bytes()
    (copy / "model.bin").write_bytes(whole.replace(b"decoder/num_heads\0", b"decoder/num_h3ads\0"))

    with pytest.raises(ValueError, match=r"write layers, heads, head_dim to headgate\.json"):
        read_model(copy)
    write(copy / "headgate.json", {"context_length": 8, "eos": [END], "heads": 4, "head_dim": 32})

    assert read_model(copy).kv_bytes_per_token == 1024
