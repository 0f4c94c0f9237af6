"""Model folders: what is read, and how invalid ones are refused."""

import json
import re

import pytest

from backends.local.model import read_model
from tests.backends.local.model.conftest import TOOL, write
from tests.models import END, NOTHING, START, write_model


def test_a_folder_is_read(model):
    """Including what CTranslate2's own files lack."""
    assert (512, "hermes", {model.vocabulary.index(END)}) == (model.context_length, model.tool_format, model.stop_ids)


def test_end_tokens_come_from_all_files(copy):
    """From config.json, generation_config.json (one id or a list) and headgate.json."""
    write(copy / "headgate.json", {"context_length": 8, "eos": [NOTHING]})
    write(copy / "generation_config.json", {"eos_token_id": 1})
    one = read_model(copy).stop_ids
    write(copy / "generation_config.json", {"eos_token_id": [1, 5]})

    assert [{0, 1, 2}, {0, 1, 2, 5}] == [one, read_model(copy).stop_ids]


def test_the_context_length_can_be_configured(copy):
    """It replaces the value in headgate.json, which may then be missing."""
    other = read_model(copy, context_length=100).context_length
    (copy / "headgate.json").unlink()
    found = read_model(copy, context_length=100)

    assert (other, found.context_length, found.tool_format) == (100, 100, "hermes")


def test_the_configured_context_cannot_exceed_that_of_the_model(copy):
    """Longer prompts would silently give wrong answers."""
    write(copy / "headgate.json", {"context_length": 2048})
    with pytest.raises(ValueError, match=r"context_length is 2049, but the model in .* supports 2048 tokens"):
        read_model(copy, context_length=2049)

    assert read_model(copy, context_length=2048).context_length == 2048


def test_headgate_json_can_disable_function_calls(copy):
    """Even when the template has a known syntax."""
    write(copy / "headgate.json", {"context_length": 100, "tool_format": None})

    assert read_model(copy).tool_format is None


def test_a_sliding_window_limits_the_context(copy):
    """The engine would process longer prompts wrongly."""
    write(copy / "headgate.json", {"context_length": 100, "sliding_window": 40})

    assert read_model(copy).context_length == 40
    assert read_model(copy, context_length=30).context_length == 30
    with pytest.raises(
        ValueError, match=r"context_length is 50, but the sliding window of the model in .* has 40 tokens"
    ):
        read_model(copy, context_length=50)


def test_a_folder_without_a_manifest_has_defaults(copy):
    """The memory of a token follows from the weights; the style of JSON is that of most models."""
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


def test_the_tokenizer_config_may_contain_templates_and_special_tokens(copy):
    """As in older models: a template for calls with tools, one for all others, and tokens as objects."""
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
    ("name", "content", "message"),
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
        ("model.bin", "", "model.bin is damaged or incomplete, at byte 0 of 0."),
        ("model.bin", "no model", "model.bin is not a CTranslate2 model."),
        (
            "config.json",
            {"bos_token": START, "eos_token": END, "unk_token": None},
            "config.json: unk_token is not a string",
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
        ("tokenizer.json", "{}", "tokenizer.json is not a readable tokenizer"),
        ("chat_template.jinja", "{% if %}", "chat_template.jinja: The chat template cannot be used"),
        ("headgate.json", {}, "set context_length, or write it to headgate.json"),
        ("headgate.json", {"context_length": 0}, "headgate.json: context_length: Input should be greater than 0."),
        ("headgate.json", {"context_length": 8, "tool_format": "x"}, "headgate.json: tool_format: Input should be"),
        (
            "headgate.json",
            {"context_length": 8, "eos": ["none"]},
            "stops at 'none', which is not in its vocabulary",
        ),
        ("generation_config.json", {"eos_token_id": [10**6]}, "eos_token_id 1000000 is not the id of a token"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id x is not the id of a token"),
    ],
)
def test_an_invalid_file_is_named(copy, name, content, message):
    """In one sentence with its fault."""
    write(copy / name, content)

    with pytest.raises(ValueError, match=re.escape(message)):
        read_model(copy)


def test_a_template_that_is_not_utf_8_is_named(copy):
    (copy / "chat_template.jinja").write_bytes(b"\xff")

    with pytest.raises(ValueError, match=r"chat_template\.jinja is not UTF-8"):
        read_model(copy)


def test_a_tokenizer_of_another_model_is_refused(copy):
    """Its ids would mean different tokens to the engine."""
    vocabulary = json.loads((copy / "vocabulary.json").read_text())
    vocabulary[100:102] = reversed(vocabulary[100:102])
    write(copy / "vocabulary.json", vocabulary)

    with pytest.raises(ValueError, match=r"token 100 is '.+' in tokenizer.json, but '.+' in vocabulary.json"):
        read_model(copy)


def test_the_vocabulary_must_have_the_size_of_the_weights(copy):
    """The engine would read beyond the end of one of them."""
    vocabulary = json.loads((copy / "vocabulary.json").read_text())
    write(copy / "vocabulary.json", [*vocabulary, "<extra_id_0>"])

    with pytest.raises(ValueError, match=r"model\.bin has 326 embeddings, but vocabulary\.json 327 tokens"):
        read_model(copy)


def test_a_vocabulary_may_be_padded(tmp_path, folder):
    """Converters pad it to the size of the weights; a token that only the tokenizer lacks is refused."""
    padded = write_model(tmp_path / "padded", ["Hello"])
    tokenizer = json.loads((padded / "tokenizer.json").read_text())
    removed = tokenizer["added_tokens"].pop()["content"]
    write(padded / "tokenizer.json", tokenizer)
    vocabulary = json.loads((padded / "vocabulary.json").read_text())

    with pytest.raises(
        ValueError, match=rf"token {len(vocabulary) - 1}, '{removed}', of vocabulary.json is not in token"
    ):
        read_model(padded)
    write(padded / "vocabulary.json", [*vocabulary[:-1], "<extra_id_0>"])

    assert len(vocabulary) == len(read_model(padded).vocabulary)


def test_incomplete_weights_are_refused(copy):
    """Wherever they end, before the engine loads them."""
    complete = (copy / "model.bin").read_bytes()
    for size in (3, 40, len(complete) // 2, len(complete) - 1):
        (copy / "model.bin").write_bytes(complete[:size])
        with pytest.raises(ValueError, match=r"model\.bin is damaged or incomplete"):
            read_model(copy)


def test_a_model_without_end_tokens_is_refused(copy):
    """Every answer would reach the token limit."""
    write(copy / "headgate.json", {"context_length": 8})
    write(copy / "config.json", {"bos_token": START, "eos_token": ""})

    with pytest.raises(ValueError, match="names no token that ends an answer"):
        read_model(copy)


def test_a_model_of_unknown_size_is_refused(copy):
    """The memory of its answers would be unknown; headgate.json can provide the numbers."""
    complete = (copy / "model.bin").read_bytes()
    (copy / "model.bin").write_bytes(complete.replace(b"decoder/num_heads\0", b"decoder/num_h3ads\0"))

    with pytest.raises(ValueError, match=r"write layers, heads, head_dim to headgate\.json"):
        read_model(copy)
    write(copy / "headgate.json", {"context_length": 8, "eos": [END], "heads": 4, "head_dim": 32})

    assert read_model(copy).kv_bytes_per_token == 1024
