"""Files of a model folder: every error names the file."""

import pytest

from backends.local.model.files import read_json, read_object, read_optional_object, read_text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "a.json is not UTF-8"),
        (b"{", "a.json is not JSON"),
        (b"[]", "a.json is not a JSON object."),
        (b"[" * 100_000, "a.json is nested too deeply."),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    """The error includes the fault."""
    (tmp_path / "a.json").write_bytes(content)

    with pytest.raises(ValueError, match=message):
        read_object(tmp_path / "a.json")


def test_a_file_that_is_missing_is_named(tmp_path):
    """An optional file may be missing."""
    with pytest.raises(OSError, match=f"The model folder {tmp_path} has no a.json."):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"a": "é"}')

    assert [read_optional_object(tmp_path / name) for name in ("a.json", "b.json")] == [{}, {"a": "é"}]
    assert read_text(tmp_path / "b.json") == '{"a": "é"}'
