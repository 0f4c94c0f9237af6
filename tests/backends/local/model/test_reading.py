"""Files of a model's folder: every fault names the file."""

import pytest

from backends.local.model.reading import json_in, object_if_there, object_in, text_in


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff", "a.json is not UTF-8"),
        (b"{", "a.json is not JSON"),
        (b"[]", "a.json is not a JSON object."),
        (b"[" * 100_000, "a.json is nested too deeply."),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, told):
    """With what is wrong with it."""
    (tmp_path / "a.json").write_bytes(content)

    with pytest.raises(ValueError, match=told):
        object_in(tmp_path / "a.json")


def test_a_file_that_is_missing_is_named(tmp_path):
    """Unless it may be missing."""
    with pytest.raises(OSError, match=f"The model folder {tmp_path} has no a.json."):
        json_in(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"a": "é"}')

    assert [object_if_there(tmp_path / name) for name in ("a.json", "b.json")] == [{}, {"a": "é"}]
    assert text_in(tmp_path / "b.json") == '{"a": "é"}'
