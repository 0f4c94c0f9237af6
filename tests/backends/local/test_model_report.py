"""The description of a model folder."""

import json
import shutil

import ctranslate2
import pytest

from backends.local.model_report import describe_model
from tests.models import START, write_model


def test_properties_are_listed_in_the_order_of_work(folder):
    """First those of the files, then those of the engine."""
    found = dict(describe_model(folder, "cpu"))
    gpus = [f"on cuda {number}" for number in range(ctranslate2.get_cuda_device_count())]

    assert list(found) == [
        "model", "architecture", "layers", "vocabulary", "context", "end tokens", "tools", "reasoning", "JSON", "weights",
        "memory", "prompt", "on cpu", *gpus, "runs on", "first token",
    ]  # fmt: skip
    assert {
        "model": str(folder),
        "architecture": "unknown",
        "layers": "1, 4 heads of 32",
        "vocabulary": "326 tokens",
        "context": "512 tokens",
        "end tokens": "<|im_end|>",
        "tools": "hermes",
        "reasoning": "none",
        "JSON": "written with ', ' and ': '",
        "memory": "1,024 bytes a token, 0.5 MB for a full context",
        "first token": "'Hello'",
    }.items() <= found.items()
    assert found["runs on"].startswith("cpu as int8")
    assert found["weights"].endswith("MB, stored as int8")


def test_properties_of_the_manifest_are_listed(tmp_path):
    """A sliding window, reasoning tags, and missing tools."""
    folder = write_model(tmp_path, tool_format=None, sliding_window=40, reasoning=["<a>", "</a>"], architecture="llama")
    found = dict(describe_model(folder, "cpu"))

    assert (
        found["context"], found["tools"], found["reasoning"], found["architecture"],
    ) == ("40 tokens, sliding window of 40", "none: it cannot call functions", "<a> ... </a>", "llama")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.bin", "", "model.bin is damaged or incomplete"),
        ("config.json", json.dumps({"bos_token": START, "eos_token": None}), "eos_token is not a string"),
        (
            "chat_template.jinja",
            "{{ raise_exception('Never.') if messages | length == 1 }}aaa",
            "a greeting cannot be rendered",
        ),
        (
            "chat_template.jinja",
            "{{ messages[0].content[:0] }}",
            "a greeting cannot be rendered: The input is too short",
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(folder, tmp_path, name, content, message):
    """The error names the reason."""
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / name).write_text(content)

    with pytest.raises(ValueError, match=message):
        list(describe_model(copy, "cpu"))
