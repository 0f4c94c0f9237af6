"""Secrets, and the rules that apply to all tables of the config."""

import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from proxy.config.secrets import Secret, reading_secrets
from proxy.config.table import Table

KEY = "sk-must-not-be-printed"


class Door(Table):
    width_m: float = 1.0
    """How wide it is, in metres."""
    key: Secret | None = None
    """The key that opens it."""


def fault(**settings: object) -> str:
    """Return the error message for settings that are refused."""
    with pytest.raises(ValidationError) as caught:
        Door(**settings)
    return str(caught.value)


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    """The value is unchanged, including spaces."""
    monkeypatch.setenv("DOOR_KEY", f" {KEY}")
    door = Door(key="env:DOOR_KEY")

    assert door.key is not None
    assert door.key.get_secret_value() == f" {KEY}"


def test_a_secret_comes_from_a_file(tmp_path: Path):
    """The line end that editors add is removed."""
    (tmp_path / "key").write_text(f"{KEY}\r\n")
    door = Door(key=f"file:{tmp_path / 'key'}")

    assert door.key is not None
    assert door.key.get_secret_value() == KEY


def test_a_secret_that_was_already_read_is_kept():
    """Tables are validated a second time by the class named in `use`."""
    assert Door(key=SecretStr(KEY)) == Door(key=SecretStr(KEY))


@pytest.mark.parametrize(
    "value",
    [KEY, "", "env:", "file:", "ENV:DOOR_KEY", "env", ":x", "vault:x", 7, True, ["env:DOOR_KEY"], {"env": "DOOR_KEY"}],
)
def test_a_literal_secret_is_refused(value: object):
    """A value that names no source is an error that does not repeat it."""
    message = fault(key=value)

    assert 'a secret must be "env:NAME" or "file:PATH", not the secret itself' in message
    assert KEY not in message


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str | None):
    """An empty variable is an error as well: an empty key would admit every client."""
    monkeypatch.delenv("DOOR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("DOOR_KEY", value)

    reason = "not set" if value is None else "empty"
    assert f"the environment variable DOOR_KEY is {reason}" in fault(key="env:DOOR_KEY")
    assert "the environment variable that it names is not set" in fault(key="env:sk-proj-1A_B")


def test_secrets_need_not_be_read(monkeypatch: pytest.MonkeyPatch):
    """Those that are not there, or none; what does not name a secret is an error anyway."""
    monkeypatch.setenv("DOOR_KEY", KEY)
    monkeypatch.delenv("NOT_SET", raising=False)
    places = ("env:DOOR_KEY", "env:NOT_SET", "env:NOT_SET", "file:/none")
    found = {}
    for reading in ("if_there", "never"):
        with reading_secrets(reading):
            found[reading] = [Door(key=place).key.get_secret_value() for place in places]
            assert "a secret must be" in fault(key=KEY)

    assert found["if_there"][0] == KEY
    assert KEY not in found["never"]
    assert found["if_there"][1:] == found["never"][1:]
    assert [len(set(values)) for values in found.values()] == [3, 3]
    assert "is not set" in fault(key="env:NOT_SET")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path):
    """The error has the reason of the operating system."""
    assert "the file that it names cannot be read: No such file or directory" in fault(key=f"file:{tmp_path}/none")
    assert "the file that it names cannot be read: Is a directory" in fault(key=f"file:{tmp_path}")


def test_an_empty_file_is_an_error(tmp_path: Path):
    """A file of blank lines counts as empty."""
    (tmp_path / "key").write_text(" \n\n")

    assert "the file that it names is empty" in fault(key=f"file:{tmp_path}/key")


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path):
    """The message does not contain the file's content."""
    (tmp_path / "key").write_bytes(b"\xff" + KEY.encode())

    assert KEY not in fault(key=f"file:{tmp_path}/key")


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_written_as_a_name_is_not_repeated(kind: str):
    """The name of the variable or file may be the secret itself, written there by mistake."""
    with pytest.raises(ValidationError) as caught:
        Door(key=f"{kind}:{KEY}")

    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("path", ["\0", "a" * 5000, "/proc/self/mem", "/etc"])
def test_a_path_that_no_file_can_have_is_refused(path: str):
    """The error is the same as for any file that cannot be read."""
    assert "1 validation error" in fault(key=f"file:{path}")


def test_a_secret_is_never_printed(monkeypatch: pytest.MonkeyPatch):
    """No form that a log or a traceback could contain has its value."""
    monkeypatch.setenv("DOOR_KEY", KEY)
    door = Door(key="env:DOOR_KEY")

    assert KEY not in f"{door!r} {door} {door.model_dump()} {door.model_dump_json()}"


def test_an_unknown_key_is_an_error():
    """Ignoring a misspelt setting would hide the mistake."""
    assert "Extra inputs are not permitted" in fault(widht_m=2)


def test_a_refused_value_is_not_repeated():
    """It may be a secret that was written in the wrong place."""
    assert KEY not in fault(width_m=KEY)
    assert KEY not in fault(kee=KEY)


@pytest.mark.parametrize("width", [float("nan"), float("inf")])
def test_numbers_are_finite(width: float):
    """TOML has nan and inf, but no setting accepts them."""
    assert "finite number" in fault(width_m=width)


def test_a_table_cannot_be_changed():
    """A validated table therefore stays valid."""
    door = Door()
    with pytest.raises(ValidationError):
        door.width_m = 2.0

    assert door.width_m == 1.0
