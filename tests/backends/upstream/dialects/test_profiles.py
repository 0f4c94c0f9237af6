"""Profiles: the defaults that they set, and that the config overrides."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from backends.upstream import Upstream
from backends.upstream.dialects.fitting import fit
from backends.upstream.dialects.profiles import PROFILES, ProfileName
from proxy.wire.call import Call


def upstream(**keys: Any) -> Upstream:
    return Upstream.model_validate({"name": "it", "base_url": "https://api.example", **keys})


def test_every_profile_is_valid_and_can_be_overridden():
    """It sets keys that exist, and each has a name in the config."""
    assert set(PROFILES) == set(get_args(ProfileName))
    for name, keys in PROFILES.items():
        made = upstream(profile=name)
        assert {key: getattr(made, key) for key in keys} == dict(keys)
        fields = {key: Upstream.model_fields[key].get_default(call_default_factory=True) for key in keys}
        assert {key: getattr(upstream(profile=name, **fields), key) for key in keys} == fields


def test_without_a_profile_nothing_changes():
    """A config from before there were profiles means the same."""
    assert upstream() == upstream(profile="generic")
    assert PROFILES["generic"] == {}


@pytest.mark.parametrize(
    ("keys", "path"),
    [({}, "/v1"), ({"profile": "azure"}, "/openai/v1"), ({"profile": "azure", "path": "/"}, ""), ({"base_url": "https://a.example/x", "profile": "azure"}, "/x")],
)  # fmt: skip
def test_the_path_is_that_of_the_address_or_of_the_profile(keys: dict[str, Any], path: str):
    """An address with a path needs no other."""
    assert upstream(**keys)._path == path


@pytest.mark.parametrize(
    "keys", [{"profile": "openei"}, {"profile": ["x"]}, {"repairs": ["x"]}, {"minimums": {"input": 0}}, {"minimums": {"max_tool_calls": -1}}, {"path": "v1"}, {"drop_fields": ["store"]}, {"profile": "openai", "drop_fields": ["max_tool_calls"]}]
)  # fmt: skip
def test_what_cannot_be_meant_is_an_error(keys: dict[str, Any]):
    """A server that does not receive a parameter cannot enforce it."""
    with pytest.raises(ValidationError):
        upstream(**keys)


@pytest.mark.parametrize(
    ("body", "kept", "names"),
    [
        ({"a": 1, "b": 2}, {"b": 2}, ["a"]),
        ({"a": None}, {}, []),
        ({"held": 5}, {}, []),
        ({"text": {"verbosity": "low", "x": 1}}, {"text": {"x": 1}}, ["text.verbosity"]),
        ({"text": {"x": 1}}, {"text": {"x": 1}}, []),
        ({"text": 7}, {"text": 7}, []),
        ({"include": ["p", "q", 5]}, {"include": ["p", 5]}, ["include.q"]),
        ({"include": ["q"]}, {}, ["include.q"]),
        ({"include": "q"}, {"include": "q"}, []),
    ],
)
def test_what_a_server_refuses_is_left_out(body: dict[str, Any], kept: dict[str, Any], names: list[str]):
    """What cannot be read stays, for the server to refuse."""
    call = Call(body)
    fitted, ignored = fit(call, ("a", "held", "text.verbosity"), ("p",), {"held"})

    assert (fitted.body, ignored) == (kept, names)
    assert (fitted is call) == (body == kept)
