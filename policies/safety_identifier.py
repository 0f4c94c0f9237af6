"""Holds somebody to account for every call: checks the caller's safety_identifier, or derives one it cannot choose.

Request: with source = "request", refuses with `required`, `not_a_string`, `too_long`, `pattern`, `personal` (pii). With
    source = "caller" the field is replaced by an HMAC of the authenticated caller, and of the end user that a trusted
    header names, so that no value of the body can change what goes out (mismatch = "reject": `mismatch`). Either way
    an identifier that was blocked is refused with `blocked`. `user` is kept, dropped or moved here.
Response: passes.
Source: https://platform.openai.com/docs/guides/safety-best-practices#implement-safety-identifiers
"""

import re
import unicodedata
from collections.abc import Awaitable, Iterator
from functools import cached_property
from typing import ClassVar, Literal, Self

import structlog
from pydantic import PositiveInt, field_validator, model_validator

from policies import Policy, PolicyState, RequestCheck
from proxy.config.secrets import Secret
from proxy.stores import StoreError
from proxy.context import Caller
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from policies.support.principal import blocked_key, hashed, identifier_of

log = structlog.get_logger()

FIELD = "safety_identifier"
LONGEST = 512  # characters that are searched for personal data; no upstream allows as many
ANYBODY = ("*",)  # suspects while only the store can tell who is blocked
# What is likely to name a person: an e-mail address, a telephone number, a first and a last name. Digits inside a
# longer word are none: every other hash or UUID has eight of them in a row.
_PERSONAL = re.compile(
    r"[^@\s]+@[^@\s]+\.[^@\s]+"
    r"|(?<![\w-])\+?(?:[\s().-]{0,2}[0-9]){8,15}(?![\w-])"
    r"|[A-Z][a-z]+(?:[ ,.]+[A-Z][a-z]*)*[ ,.]*[ ,][A-Z][a-z]+"
)


class SafetyIdentifier(Policy):
    source: Literal["request", "caller"] = "request"
    """Who names the identifier: the request (it is checked), or the gate from the authenticated caller."""
    require: bool = False
    """Whether a request without one is refused."""
    pattern: str | None = None
    """A regular expression (ASCII classes) that the whole identifier must match."""
    max_chars: PositiveInt = 64
    """How long it may be, in characters; some upstreams allow 128."""
    pii: Literal["allow", "reject", "hash"] = "allow"
    """What happens to one that looks like an e-mail address, a telephone number or a name; "hash" needs keys."""
    key: Secret | None = None
    """The key of the HMAC, for source = "caller" and pii = "hash"."""
    keys: tuple[Secret, ...] = ()
    """Instead of key, while it is rotated: newest first; the first signs, all are known to `headgate whois`."""
    end_user_header: str | None = None
    """With source = "caller": a header that a trusted caller names its end user in; part of the identifier."""
    mismatch: Literal["overwrite", "reject"] = "overwrite"
    """With source = "caller": what happens to a request that names another identifier of its own."""
    user: Literal["keep", "drop", "move"] = "keep"
    """What happens to the field `user`, which safety_identifier replaced: "move" puts it there if that is empty."""
    blocked: tuple[str, ...] = ()
    """Identifiers that are refused, as they go out; `headgate block` adds more while the gate runs."""

    judges_text: ClassVar[frozenset[str]] = frozenset({"blocked", "end_user_header", "mismatch", "pattern", "pii"})

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "", re.ASCII)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _keys_where_needed(self) -> Self:
        if self.key is not None and self.keys:
            raise ValueError("give either key or keys, not both")
        if not self.all_keys and (self.source == "caller" or self.pii == "hash"):
            needs = 'source = "caller"' if self.source == "caller" else 'pii = "hash"'
            raise ValueError(f'{needs} needs a key: key = "env:NAME"')
        return self

    @cached_property
    def all_keys(self) -> tuple[bytes, ...]:
        """Every key that identifiers may have been made with, the one that signs first."""
        keys = self.keys if self.key is None else (self.key,)
        return tuple(key.get_secret_value().encode() for key in keys)

    def judging(self) -> Judge:
        kept, limit = self._shared_state.possible_keys, min(self.max_chars, LONGEST)
        suspects = self.blocked or (ANYBODY if kept is None else kept)
        matches = re.compile(r"(?s:.*)" if self.pattern is None else self.pattern, re.ASCII).fullmatch
        as_asked = self.source == "request" and self.user == "keep" and self.pii == "allow"

        def judge(call: Call) -> Call | Awaitable[Call]:
            sent = call.body.get(FIELD)
            if not (as_asked and isinstance(sent, str) and len(sent) <= limit and matches(sent)):
                return self._judged(call)
            return self._unblocked(call, call) if suspects else call

        return judge

    async def _judged(self, call: Call) -> Call:
        asked = call if self.user == "keep" else self._with_user(call)
        sent = self._bound(asked) if self.source == "caller" else self._checked(asked)
        return await self._unblocked(asked, sent)

    async def _unblocked(self, asked: Call, call: Call) -> Call:
        """The call as it is sent. Raises PolicyViolation when any identifier it is known by is blocked."""
        sent = call.body.get(FIELD)
        if isinstance(sent, str):
            await self._refuse_blocked(sent, *self._known_as(asked, sent))
        return call

    def _with_user(self, call: Call) -> Call:
        user = call.body.get("user")
        if "user" not in call.body:
            return call
        if self.user == "move" and isinstance(user, str) and call.body.get(FIELD) is None:
            call = call.with_fields(safety_identifier=user)
        return call.without_fields("user")

    def _bound(self, call: Call) -> Call:
        """The call under the identifier of its principal: who was authenticated, and whom that one speaks for."""
        bound = identifier_of(self.all_keys[0], call.caller, self._end_user(call))
        asked = call.body.get(FIELD)
        if self.mismatch == "reject" and asked not in (None, bound):
            raise PolicyViolation("mismatch", f"{FIELD} is set by this gate; leave it out.", param=FIELD)
        return call if asked == bound else call.with_fields(safety_identifier=bound)

    def _checked(self, call: Call) -> Call:
        identifier = call.body.get(FIELD)
        if identifier is None:
            if self.require:
                raise PolicyViolation("required", f"{FIELD} is missing; this gate requires one.", param=FIELD)
            return call
        if not isinstance(identifier, str):
            raise PolicyViolation("not_a_string", f"{FIELD} is not a string.", param=FIELD)
        if self.pii != "allow" and len(identifier) <= LONGEST and _PERSONAL.search(_plain(identifier)):
            if self.pii == "reject":
                raise PolicyViolation("personal", f"{FIELD} looks like a person's own data; hash it.", param=FIELD)
            return call.with_fields(safety_identifier=hashed(self.all_keys[0], call.caller.team, identifier))
        limit = min(self.max_chars, LONGEST)
        if len(identifier) > limit:
            found = f"{FIELD} has {len(identifier)} characters; the limit is {limit}."
            raise PolicyViolation("too_long", found, param=FIELD)
        if self._whole is not None and not self._whole.fullmatch(identifier):
            raise PolicyViolation("pattern", f"{FIELD} does not match the pattern {self.pattern}.", param=FIELD)
        return call

    @cached_property
    def _whole(self) -> re.Pattern[str] | None:
        return None if self.pattern is None else re.compile(self.pattern, re.ASCII)

    def _end_user(self, call: Call) -> str:
        return call.received.get(self.end_user_header.lower(), "") if self.end_user_header else ""

    def _known_as(self, asked: Call, sent: str) -> Iterator[str]:
        """What would go out under older keys: who was blocked before a rotation stays blocked."""
        named = asked.body.get(FIELD)
        for key in self.all_keys[1:]:
            if self.source == "caller":
                yield identifier_of(key, asked.caller, self._end_user(asked))
            elif isinstance(named, str) and named != sent:
                yield hashed(key, asked.caller.team, named)

    async def _refuse_blocked(self, *identifiers: str) -> None:
        """A store that is away blocks nobody but whom the config names; one line says so."""
        for identifier in identifiers:
            blocked = identifier in self.blocked
            if not blocked:
                try:
                    blocked = await self._shared_state.get(blocked_key(identifier)) is not None
                except StoreError as error:
                    log.warning("blocklist.failed", error=str(error)[:200])
            if blocked:
                raise PolicyViolation("blocked", "This safety_identifier is blocked here.", param=FIELD)


def _plain(text: str) -> str:
    """A text without accents, widths and characters that nobody sees: the same person in another dress."""
    letters = unicodedata.normalize("NFKD", text)[: 2 * LONGEST]  # a character may hide seven, and searching costs
    return "".join(c for c in letters if unicodedata.category(c) not in ("Cf", "Mn", "Cc"))


def known_as(policy: SafetyIdentifier, identifier: str, caller: Caller, end_user: str) -> bool:
    """Whether, under any of the policy's keys, this is the identifier of a caller and an end user."""
    return any(identifier_of(key, caller, end_user) == identifier for key in policy.all_keys)
