"""What every table that people type has in common."""

import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from proxy.config.secrets import Secret
from proxy.config.table import Table

KEY = "sk-nobody-may-see-this"


class Door(Table):
    width_m: float = 1.0
    """How wide it is, in metres."""
    key: Secret | None = None
    """What opens it."""


def fault(**settings: object) -> str:
    """What is said of settings that are refused."""
    with pytest.raises(ValidationError) as caught:
        Door(**settings)
    return str(caught.value)


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    """As it stands there, not a space is taken off."""
    monkeypatch.setenv("DOOR_KEY", f" {KEY}")
    door = Door(key="env:DOOR_KEY")

    assert door.key is not None
    assert door.key.get_secret_value() == f" {KEY}"


def test_a_secret_comes_from_a_file(tmp_path: Path):
    """Editors end a file with a line end, which is no part of the secret."""
    (tmp_path / "key").write_text(f"{KEY}\r\n")
    door = Door(key=f"file:{tmp_path / 'key'}")

    assert door.key is not None
    assert door.key.get_secret_value() == KEY


def test_a_secret_that_was_read_already_stays():
    """Tables are read a second time by the class that they name."""
    assert Door(key=SecretStr(KEY)) == Door(key=SecretStr(KEY))


@pytest.mark.parametrize(
    "typed",
    [KEY, "", "env:", "file:", "ENV:DOOR_KEY", "env", ":x", "vault:x", 7, True, ["env:DOOR_KEY"], {"env": "DOOR_KEY"}],
)
def test_a_secret_is_never_typed_by_itself(typed: object):
    """What names no place is refused and not repeated."""
    said = fault(key=typed)

    assert 'a secret must be "env:NAME" or "file:PATH", not the secret itself' in said
    assert KEY not in said


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None):
    """An empty one is as good as none: it would open the door to everybody."""
    monkeypatch.delenv("DOOR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("DOOR_KEY", value)

    assert "the environment variable that it names is not set" in fault(key="env:DOOR_KEY")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    """With what the system says of it."""
    assert "the file that it names cannot be read: No such file or directory" in fault(key=f"file:{tmp_path}/none")
    assert "the file that it names cannot be read: Is a directory" in fault(key=f"file:{tmp_path}")


def test_an_empty_file_is_no_secret(tmp_path: Path):
    """Nor is one of blank lines."""
    (tmp_path / "key").write_text(" \n\n")

    assert "the file that it names is empty" in fault(key=f"file:{tmp_path}/key")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    """None of its bytes are shown."""
    (tmp_path / "key").write_bytes(b"\xff" + KEY.encode())

    assert KEY not in fault(key=f"file:{tmp_path}/key")


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_written_as_a_name_is_not_repeated(kind: str):
    """The place that a secret names may be the secret itself, written there by mistake."""
    with pytest.raises(ValidationError) as caught:
        Door(key=f"{kind}:{KEY}")

    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("path", ["\0", "a" * 5000, "/proc/self/mem", "/etc"])
def test_a_path_that_no_file_can_have_is_refused(path: str):
    """As any file that cannot be read."""
    assert "1 validation error" in fault(key=f"file:{path}")


def test_a_secret_never_shows(monkeypatch: pytest.MonkeyPatch):
    """In no form that a log or a traceback might take."""
    monkeypatch.setenv("DOOR_KEY", KEY)
    door = Door(key="env:DOOR_KEY")

    assert KEY not in f"{door!r} {door} {door.model_dump()} {door.model_dump_json()}"


def test_an_unknown_key_is_an_error():
    """A slip of the pen is not a hole."""
    assert "Extra inputs are not permitted" in fault(widht_m=2)


def test_a_refused_value_is_not_repeated():
    """It may be a secret that was typed in the wrong place."""
    assert KEY not in fault(width_m=KEY)
    assert KEY not in fault(kee=KEY)


@pytest.mark.parametrize("width", [float("nan"), float("inf")])
def test_numbers_are_numbers(width: float):
    """TOML knows nan and inf; no setting means them."""
    assert "finite number" in fault(width_m=width)


def test_a_table_does_not_change():
    """What was checked at the start is what holds."""
    door = Door()
    with pytest.raises(ValidationError):
        door.width_m = 2.0

    assert door.width_m == 1.0


def test_each_key_has_its_sentence():
    """The text under a field is what `headgate explain` prints."""
    assert Door.model_fields["width_m"].description == "How wide it is, in metres."
