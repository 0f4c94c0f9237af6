"""Bounds the metadata that callers attach to a response, and stamps into it what the organisation wants to find there.

Request: refuses with `too_many_pairs`, `key_too_long`, `value_not_a_string`, `value_too_long`, `not_allowed`,
    `forbidden`, `value_pattern`, `lookalike` (a key that only looks like one that is set, required or has a pattern),
    `required`, and with `not_an_object` when it is something else than an object. Then `set` is stamped in, over
    whatever the caller sent under those keys; nothing else is ever added. Lengths count characters as they are
    forwarded, stamped ones too. Keys are matched by globs, values by regular expressions.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-metadata
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import ClassVar, Self

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from proxy.wire.names import folded, plain

FIELD = "metadata"
ANY = ("*",)
KNOWN = ("{caller.name}", "{caller.team}", "{model}")
_PLACEHOLDER = re.compile("|".join(re.escape(name) for name in KNOWN))


class MetadataLimits(Policy):
    max_pairs: NonNegativeInt = 16
    """How many pairs a call may carry."""
    max_key_chars: NonNegativeInt = 64
    """How long a key may be, in characters."""
    max_value_chars: NonNegativeInt = 512
    """How long a value may be, in characters."""
    required: tuple[str, ...] = ()
    """Keys that every call must carry; those that `set` stamps are there."""
    allowed: tuple[str, ...] = ANY
    """Keys that callers may use, with * and ? for any characters; an empty list allows none."""
    forbidden: tuple[str, ...] = ()
    """Keys that callers may not use, with * and ?; in whatever case, width or invisible characters they come."""
    values: dict[str, str] = Field(default={})
    """For a key, the regular expression (ASCII classes) that its whole value must match when it is there."""
    set: dict[str, str] = Field(default={})
    """Values that the gate stamps over the caller's: text with {caller.name}, {caller.team} and {model}."""

    judges_text: ClassVar[frozenset[str]] = frozenset({"values"})

    @field_validator("values")
    @classmethod
    def _compile(cls, values: dict[str, str]) -> dict[str, str]:
        for key, pattern in values.items():
            try:
                re.compile(pattern, re.ASCII)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"the one for '{key}' is not a regular expression: {error}") from error
        return values

    @field_validator("set")
    @classmethod
    def _know_placeholders(cls, stamped: dict[str, str]) -> dict[str, str]:
        for key, template in stamped.items():
            if re.search("[{}]", _PLACEHOLDER.sub("", template)):
                raise ValueError(f"'{key}' has a placeholder that is not known; known: {', '.join(KNOWN)}")
        return stamped

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        """Settings that would refuse every call are a slip of the pen."""
        if len({*self.required, *self.set}) > self.max_pairs:
            raise ValueError(f"required and set name more keys than max_pairs allows, which is {self.max_pairs}")
        for key in (*self.required, *self.set):
            if len(key) > self.max_key_chars:
                raise ValueError(f"'{key}' is longer than max_key_chars allows, which is {self.max_key_chars}")
        for key, template in self.set.items():
            if len(_PLACEHOLDER.sub("", template)) > self.max_value_chars:
                raise ValueError(f"set.{key} is longer than max_value_chars allows, which is {self.max_value_chars}")
        for key in self.required:
            if key not in self.set and (self._is_forbidden(key) or not _matches(key, self.allowed)):
                raise ValueError(f"'{key}' is required, and allowed or forbidden refuse it")
        return self

    def judging(self) -> Judge:
        """Most calls exceed no limit, and to tell it costs a third of finding what is wrong."""
        most, longest_key, longest_value = self.max_pairs, self.max_key_chars, self.max_value_chars
        if self.allowed != ANY or self.required or self.forbidden or self.values or self.set:
            return self._judged

        def judge(call: Call) -> Call:
            sent = call.body.get(FIELD)
            if sent is None:
                return call
            if type(sent) is not dict or len(sent) > most:
                return self._judged(call)
            for key, value in sent.items():
                if type(value) is not str or len(value) > longest_value or len(key) > longest_key:
                    return self._judged(call)
            return call

        return judge

    def _judged(self, call: Call) -> Call:
        sent = call.body.get(FIELD)
        if sent is None:
            sent = {}
        if not isinstance(sent, dict):
            raise PolicyViolation("not_an_object", "metadata is not an object of string pairs.", param=FIELD)
        stamped = {key: _filled(template, call) for key, template in self.set.items()}
        whole = {**sent, **stamped}
        self._check_count(whole)
        for key in sorted(whole):  # in this order, so that one and the same refusal is told in whatever order they came
            if key not in stamped:
                self._check_key(key)
            self._check_value(key, whole[key])
        for key in self.required:
            if key not in whole:
                raise PolicyViolation("required", f"metadata lacks the required key '{_shown(key)}'.", param=FIELD)
        return call if whole == sent else call.with_fields(metadata=whole)

    def _check_count(self, whole: Mapping[str, object]) -> None:
        if len(whole) > self.max_pairs:
            ours = f", {len(self.set)} of them set by this gate" if self.set else ""
            found = f"metadata has {len(whole)} pairs{ours}; the limit is {self.max_pairs}."
            raise PolicyViolation("too_many_pairs", found, param=FIELD)

    def _check_key(self, key: str) -> None:
        """Raises PolicyViolation for a key of the caller's that may not stand there."""
        if len(key) > self.max_key_chars:
            found = f"the key '{_shown(key)}' of metadata has {len(key)} characters; the limit is {self.max_key_chars}."
            raise PolicyViolation("key_too_long", found, param=FIELD)
        if not self._named and not self.forbidden and self.allowed == ANY:
            return
        param = f"{FIELD}.{_shown(key)}"
        if key not in self._named and _taken(key) in self._named.values():
            found = f"{param} looks like a key that this gate judges; only that key is allowed."
            raise PolicyViolation("lookalike", found, param=param)
        if self._is_forbidden(key):
            raise PolicyViolation("forbidden", f"{param} is a key that is forbidden here; leave it out.", param=param)
        if not _matches(key, self.allowed):
            allowed = _shown(", ".join(self.allowed)) or "none"
            raise PolicyViolation("not_allowed", f"{param} is not allowed; allowed: {allowed}.", param=param)

    def _check_value(self, key: str, value: object) -> None:
        if isinstance(value, str) and len(value) <= self.max_value_chars and not self.values:
            return
        param = f"{FIELD}.{_shown(key)}"
        if not isinstance(value, str):
            raise PolicyViolation("value_not_a_string", f"{param} is not a string.", param=param)
        if len(value) > self.max_value_chars:
            found = f"{param} has {len(value)} characters; the limit is {self.max_value_chars}."
            raise PolicyViolation("value_too_long", found, param=param)
        pattern = self.values.get(key)
        if pattern is not None and key not in self.set and not re.fullmatch(pattern, value, re.ASCII):
            found = f"{param} does not match the pattern {_shown(pattern)}."
            raise PolicyViolation("value_pattern", found, param=param)

    @cached_property
    def _named(self) -> Mapping[str, str]:
        """The keys that the settings name, each as it may be taken."""
        return {key: _taken(key) for key in (*self.required, *self.values, *self.set)}

    def _is_forbidden(self, key: str) -> bool:
        """Whoever reads metadata later may fold what it reads, so a forbidden key is known in every dress."""
        return _matches(key, self.forbidden) or _matches(_taken(key), map(_taken, self.forbidden))


def _taken(key: str) -> str:
    """What a key may be taken for: a Latin word, if it looks like one; marks of other scripts tell words apart."""
    return latin if (latin := folded(key)).isascii() else plain(key)


def _matches(key: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(key, glob) for glob in globs)


def _filled(template: str, call: Call) -> str:
    """Placeholders are filled in one pass: what a caller calls its model is text, never a template."""
    values = dict(zip(KNOWN, (call.caller.name, call.caller.team, call.model), strict=True))
    return _PLACEHOLDER.sub(lambda found: values[found[0]], template)


def _shown(text: str) -> str:
    """Somebody's text, short and printable."""
    printable = text[:33] if text[:33].isprintable() else ascii(text[:33])[1:-1]
    return printable if len(printable) <= 32 else printable[:32] + "..."
