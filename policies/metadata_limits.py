"""Limits the metadata that callers attach to a response, and sets the pairs that the organisation needs in it.

Request: refuses with `too_many_pairs`, `key_too_long`, `value_not_a_string`, `value_too_long`, `not_allowed`,
    `forbidden`, `value_pattern`, `lookalike` (a key that resembles one that is set, required or has a pattern),
    `required`, and with `not_an_object` for anything but an object. Then `set` replaces whatever the caller sent under
    its keys; nothing else is ever added. The metadata of conversations is treated alike. Lengths count characters as
    they are forwarded, those of `set` too. Keys are matched by globs, values by regular expressions.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-metadata
"""

import re
from collections.abc import Callable
from typing import ClassVar, Self

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support.globs import compile_globs
from policies.support.patterns import compile_pattern
from proxy.context import Caller, Context
from proxy.wire.call import Call, Operation
from proxy.wire.errors import PolicyViolation
from proxy.wire.fields import fold_name, normalize
from proxy.wire.refusals import wrong_type

FIELD = "metadata"
ANY_KEY = ("*",)
PLACEHOLDERS = ("{caller.name}", "{caller.team}", "{model}")
MAX_SHOWN_CHARS = 32
_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS)))


class MetadataLimits(Policy):
    operations: ClassVar[frozenset[Operation]] = frozenset({"create", "conversation"})

    max_pairs: NonNegativeInt = 16
    """How many pairs a call may carry."""
    max_key_chars: NonNegativeInt = 64
    """How long a key may be, in characters."""
    max_value_chars: NonNegativeInt = 512
    """How long a value may be, in characters."""
    required: tuple[str, ...] = ()
    """Keys that every call must have; a key of `set` is always there."""
    allowed: tuple[str, ...] = ANY_KEY
    """Keys that callers may use; `*` and `?` are wildcards. An empty list allows none."""
    forbidden: tuple[str, ...] = ()
    """Keys that callers may not use, with wildcards; matched after Unicode normalisation and case folding."""
    values: dict[str, str] = Field(default={})
    """For a key, the regular expression (ASCII classes) that its whole value must match if the call has the key."""
    set: dict[str, str] = Field(default={})
    """Values that replace the caller's: text with {caller.name}, {caller.team} and {model}, which is empty in a request
    for a conversation."""

    text_keys: ClassVar[frozenset[str]] = frozenset({"values"})

    @field_validator("values")
    @classmethod
    def _are_patterns(cls, values: dict[str, str]) -> dict[str, str]:
        for key, pattern in values.items():
            try:
                compile_pattern(pattern)
            except ValueError as error:
                raise ValueError(f"the pattern for '{key}' is {error}") from error
        return values

    @field_validator("set")
    @classmethod
    def _have_known_placeholders(cls, templates: dict[str, str]) -> dict[str, str]:
        for key, template in templates.items():
            if re.search("[{}]", _PLACEHOLDER.sub("", template)):
                raise ValueError(f"'{key}' has an unknown placeholder; known: {', '.join(PLACEHOLDERS)}")
        return templates

    @model_validator(mode="after")
    def _allow_some_call(self) -> Self:
        """Raises ValueError for settings that would refuse every call."""
        if len({*self.required, *self.set}) > self.max_pairs:
            raise ValueError(f"required and set name more keys than max_pairs allows, which is {self.max_pairs}")
        for key in (*self.required, *self.set):
            if len(key) > self.max_key_chars:
                raise ValueError(f"'{key}' is longer than max_key_chars allows, which is {self.max_key_chars}")
        for key, template in self.set.items():
            if len(_PLACEHOLDER.sub("", template)) > self.max_value_chars:
                raise ValueError(f"set.{key} is longer than max_value_chars allows, which is {self.max_value_chars}")
        keys = MetadataKeys(self)
        for key in self.required:
            if key not in self.set and (keys.is_forbidden(key) or not keys.allowed.match(key)):
                raise ValueError(f"'{key}' is required, and allowed or forbidden refuse it")
        return self

    def request_check(self, state: PolicyState) -> RequestCheck:
        """Most calls exceed no limit; finding that out costs a third of finding the reason of a refusal."""
        del state
        max_pairs, max_key_chars, max_value_chars = self.max_pairs, self.max_key_chars, self.max_value_chars
        check_fully = self._full_check()
        if self.allowed != ANY_KEY or self.required or self.forbidden or self.values or self.set:
            return Repeatable(check_fully)

        def check(call: Call, context: Context) -> Call:
            sent = call.body.get(FIELD)
            if sent is None:
                return call
            if type(sent) is not dict or len(sent) > max_pairs:
                return check_fully(call, context)
            try:
                if len("".join(sent)) <= max_key_chars and len("".join(sent.values())) <= max_value_chars:
                    return call  # all together are as short as each may be
            except TypeError:
                return check_fully(call, context)
            for key, value in sent.items():
                if type(value) is not str or len(value) > max_value_chars or len(key) > max_key_chars:
                    return check_fully(call, context)
            return call

        return Repeatable(check)

    def _full_check(self) -> Callable[[Call, Context], Call]:
        """Return the check of every limit, one pair after the other."""
        keys, values, templates, required = MetadataKeys(self), MetadataValues(self), self.set, self.required
        max_pairs, own = self.max_pairs, f", {len(self.set)} of them set by the gateway" if self.set else ""

        def check(call: Call, context: Context) -> Call:
            sent = call.body.get(FIELD)
            if sent is None:
                sent = {}
            if not isinstance(sent, dict):
                raise PolicyViolation("not_an_object", wrong_type(FIELD, "an object", sent), param=FIELD)
            pairs = {**sent, **{key: _fill(text, call, context.caller) for key, text in templates.items()}}
            if len(pairs) > max_pairs:
                found = f"metadata has {len(pairs)} pairs{own}; the limit is {max_pairs}."
                raise PolicyViolation("too_many_pairs", found, param=FIELD)
            for key in sorted(pairs):  # sorted, so that the order of the pairs does not decide which one is refused
                if key not in templates:
                    keys.check(key)
                values.check(key, pairs[key])
            for key in required:
                if key not in pairs:
                    raise PolicyViolation("required", f"metadata lacks the required key '{_show(key)}'.", param=FIELD)
            return call if pairs == sent else call.with_fields(metadata=pairs)

        return check


class MetadataKeys:
    """The rules for keys that callers send."""

    def __init__(self, policy: MetadataLimits) -> None:
        self.allowed = compile_globs(policy.allowed)
        self._allowed_globs = policy.allowed
        self._forbidden = compile_globs(policy.forbidden)
        self._forbidden_normalized = compile_globs(map(_normalized, policy.forbidden))
        self._max_chars = policy.max_key_chars
        self._named = frozenset((*policy.required, *policy.values, *policy.set))
        self._named_normalized = frozenset(map(_normalized, self._named))
        self._only_length = policy.allowed == ANY_KEY and not self._named and not policy.forbidden

    def check(self, key: str) -> None:
        """Raises PolicyViolation for a key that is not allowed."""
        if len(key) > self._max_chars:
            found = f"the key '{_show(key)}' of metadata has {len(key)} characters; the limit is {self._max_chars}."
            raise PolicyViolation("key_too_long", found, param=FIELD)
        if self._only_length:
            return
        param = _param(key)
        if key not in self._named and _normalized(key) in self._named_normalized:
            found = f"{param} resembles a key that the gateway checks; only that key is allowed."
            raise PolicyViolation("lookalike", found, param=param)
        if self.is_forbidden(key):
            raise PolicyViolation("forbidden", f"{param} is a key that is forbidden; leave it out.", param=param)
        if not self.allowed.match(key):
            allowed = _show(", ".join(self._allowed_globs)) or "none"
            raise PolicyViolation("not_allowed", f"{param} is not allowed; allowed: {allowed}.", param=param)

    def is_forbidden(self, key: str) -> bool:
        """Whether a glob of `forbidden` matches a key, or its normalized form, which later readers may take it for."""
        return self._forbidden.match(key) is not None or self._forbidden_normalized.match(_normalized(key)) is not None


class MetadataValues:
    """The rules for values: the caller's, and for their length those of `set` too."""

    def __init__(self, policy: MetadataLimits) -> None:
        self._max_chars = policy.max_value_chars
        self._patterns = {
            key: (pattern, compile_pattern(pattern)) for key, pattern in policy.values.items() if key not in policy.set
        }

    def check(self, key: str, value: object) -> None:
        """Raises PolicyViolation for a value that is not allowed under this key."""
        if not isinstance(value, str):
            raise PolicyViolation("value_not_a_string", wrong_type(_param(key), "a string", value), param=_param(key))
        if len(value) > self._max_chars:
            found = f"{_param(key)} has {len(value)} characters; the limit is {self._max_chars}."
            raise PolicyViolation("value_too_long", found, param=_param(key))
        rule = self._patterns.get(key)
        if rule is not None and not rule[1](value):
            found = f"{_param(key)} does not match the pattern {_show(rule[0])}."
            raise PolicyViolation("value_pattern", found, param=_param(key))


def _normalized(key: str) -> str:
    """Return the word that a key may be read as, without case, width and invisible characters.

    A key that resembles a Latin word also loses its accents and the letters of other scripts. In other scripts marks
    distinguish words, and are kept.
    """
    return latin if (latin := fold_name(key)).isascii() else normalize(key)


def _fill(template: str, call: Call, caller: Caller) -> str:
    """Return a template with its placeholders filled, in one pass: the name of a model is never read as a template."""
    values = dict(zip(PLACEHOLDERS, (caller.name, caller.team, call.model), strict=True))
    return _PLACEHOLDER.sub(lambda found: values[found[0]], template)


def _param(key: str) -> str:
    return f"{FIELD}.{_show(key)}"


def _show(text: str) -> str:
    """Return the beginning of a text, printable."""
    start = text[: MAX_SHOWN_CHARS + 1]
    printable = start if start.isprintable() else ascii(start)[1:-1]
    return printable if len(printable) <= MAX_SHOWN_CHARS else f"{printable[:MAX_SHOWN_CHARS]}..."
