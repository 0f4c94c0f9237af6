"""What a model folder can do."""

import json
import shutil

import pytest

from backends.local.report import report
from tests.models import START, write_model


def test_everything_is_told_in_the_order_of_work(folder):
    """First what the files say, then what the engine says."""
    told = dict(report(folder, "cpu"))

    assert list(told) == [
        "model", "architecture", "layers", "vocabulary", "context", "ends with", "tools", "reasoning", "JSON", "weights",
        "memory", "prompt", "on cpu", "runs on", "first token",
    ]  # fmt: skip
    assert {
        "model": str(folder),
        "architecture": "not told",
        "layers": "1, 4 heads of 32",
        "vocabulary": "326 tokens",
        "context": "512 tokens",
        "ends with": "<|im_end|>",
        "tools": "hermes",
        "reasoning": "none",
        "JSON": "written with ', ' and ': '",
        "memory": "1,024 bytes a token, 0.5 MB for a whole context",
        "first token": "'Hello'",
    }.items() <= told.items()
    assert told["runs on"].startswith("cpu as int8")
    assert told["weights"].endswith("MB, stored as int8")


def test_what_a_card_says_is_told(tmp_path):
    """A window, thoughts, and that there are no tools."""
    folder = write_model(tmp_path, tool_format=None, sliding_window=40, reasoning=["<a>", "</a>"], architecture="llama")
    told = dict(report(folder, "cpu"))

    assert (
        told["context"], told["tools"], told["reasoning"], told["architecture"],
    ) == ("40 tokens, its window is 40", "none: it cannot call functions", "<a> ... </a>", "llama")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.bin", "", "model.bin is damaged or cut off"),
        ("config.json", json.dumps({"bos_token": START, "eos_token": None}), "eos_token is no string"),
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
def test_a_model_that_cannot_serve_is_refused(folder, tmp_path, name, content, told):
    """With the reason."""
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / name).write_text(content)

    with pytest.raises(ValueError, match=told):
        list(report(copy, "cpu"))
