"""Makes every call attributable: checks the caller's safety_identifier, or derives one that no body can change.

Request: with source = "request", refuses with `required`, `not_a_string`, `too_long`, `pattern`, `personal` (pii). With
    source = "caller" the field is replaced by an HMAC of the authenticated caller, and of the end user that a trusted
    header names (mismatch = "reject": another identifier is refused with `mismatch`). In both cases a blocked
    identifier is refused with `blocked`. `user` is kept, dropped or moved here.
Response: passes.
Source: https://platform.openai.com/docs/guides/safety-best-practices#implement-safety-identifiers
"""

import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from itertools import product
from typing import ClassVar, Literal, Self

import structlog
from pydantic import PositiveInt, field_validator, model_validator

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support.patterns import compile_pattern
from policies.support.principal import DERIVED, blocked_key, derive_identifier, hash_value
from proxy.config.secrets import Secret
from proxy.context import Caller, Context
from proxy.outage import Outage
from proxy.stores import Store, StoreError
from proxy.wire.call import Call, Operation
from proxy.wire.errors import PolicyViolation
from proxy.wire.loggable import short_message
from proxy.wire.refusals import wrong_type

log = structlog.get_logger()

FIELD = "safety_identifier"
MAX_SEARCHED_CHARS = 512  # a longer identifier is not searched for personal data; no upstream allows as many
# What is likely to identify a person: an e-mail address, a telephone number, a first and a last name. Digits inside a
# longer word do not count: every other hash has eight of them in a row.
_PERSONAL = re.compile(
    r"[^@\s]+@[^@\s]+\.[^@\s]+"
    r"|(?<![\w-])\+?(?:[\s().-]{0,2}[0-9]){8,15}(?![\w-])"
    r"|[A-Z][a-z]+(?:[ ,.]+[A-Z][a-z]*)*[ ,.]*[ ,][A-Z][a-z]+"
)
Naming = Callable[[Call, Context], tuple[Call, Sequence[str]]]
"""Returns the call as it is sent, and the identifiers that it would have under older keys. Raises PolicyViolation."""


class SafetyIdentifier(Policy):
    operations: ClassVar[frozenset[Operation]] = frozenset({"create"})

    source: Literal["request", "caller"] = "request"
    """Where the identifier comes from: the request (it is checked), or the authenticated caller (it is derived)."""
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
    """Instead of key, during a rotation: newest first. The first signs; `headgate whois` tries all of them."""
    end_user_header: str | None = None
    """With source = "caller": the header in which a trusted caller names its end user; part of the identifier."""
    mismatch: Literal["overwrite", "reject"] = "overwrite"
    """With source = "caller": what happens to a request that has another identifier."""
    user: Literal["keep", "drop", "move"] = "keep"
    """What happens to `user`, the older field that safety_identifier replaced: "move" uses it where that is empty."""
    blocked: tuple[str, ...] = ()
    """Identifiers that are refused, as they are sent upstream; `headgate block` adds more at run time."""

    text_keys: ClassVar[frozenset[str]] = frozenset({"blocked", "end_user_header", "mismatch", "pattern", "pii"})

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        compile_pattern(pattern or "")
        return pattern

    @model_validator(mode="after")
    def _have_keys_where_needed(self) -> Self:
        if self.key is not None and self.keys:
            raise ValueError("give either key or keys, not both")
        if not self._key_bytes() and (self.source == "caller" or self.pii == "hash"):
            needs = 'source = "caller"' if self.source == "caller" else 'pii = "hash"'
            raise ValueError(f'{needs} needs a key: key = "env:NAME"')
        return self

    def request_check(self, state: PolicyState) -> RequestCheck:
        name = self._name_by_caller() if self.source == "caller" else self._name_by_request()
        keeps_user, moves_user = self.user == "keep", self.user == "move"
        refuse_blocked = Blocklist(state.store, frozenset(self.blocked)).refuse_blocked

        def check(call: Call, context: Context) -> Call | Awaitable[Call]:
            received = call if keeps_user or "user" not in call.body else _remove_user(call, moves=moves_user)
            named, older = name(received, context)
            identifier = named.body.get(FIELD)
            return refuse_blocked(named, (identifier, *older)) if isinstance(identifier, str) else named

        def recheck(call: Call, _context: Context) -> Call | Awaitable[Call]:
            identifier = call.body.get(FIELD)
            return refuse_blocked(call, (identifier,)) if isinstance(identifier, str) else call

        is_derived = self.source == "caller" or self.pii == "hash"  # from a header too, or with older keys
        return check if is_derived else Repeatable(check, recheck)

    def identify(self, identifier: str, callers: Iterable[Caller], end_users: Iterable[str]) -> str | None:
        """Return the caller and end user that an identifier was derived from, or the value that it is the hash of."""
        keys, callers, end_users = self._key_bytes(), tuple(callers), tuple(end_users)
        for caller, end_user, key in product(callers, ("", *end_users), keys):
            if derive_identifier(key, caller, end_user) == identifier:
                return f"{caller.name} (team {caller.team})" + (f", for its end user {end_user}" if end_user else "")
        for team, value, key in product(dict.fromkeys(caller.team for caller in callers), end_users, keys):
            if hash_value(key, team, value) == identifier:
                names = ", ".join(caller.name for caller in callers if caller.team == team)
                return f"{names} (team {team}), hashed from {value}"
        return None

    def may_send(self, identifier: str, callers: Iterable[Caller]) -> bool:
        if self.source == "caller":
            named = self.end_user_header is not None and DERIVED.fullmatch(identifier) is not None
            return named or self.identify(identifier, callers, ()) is not None
        if self.pii != "allow" and _is_personal(identifier):
            return False
        is_short = len(identifier) <= min(self.max_chars, MAX_SEARCHED_CHARS) or DERIVED.fullmatch(identifier)
        return bool(is_short) and (self.pattern is None or compile_pattern(self.pattern)(identifier))

    def _key_bytes(self) -> tuple[bytes, ...]:
        """Return every key that identifiers may have been made with; the first one signs."""
        keys = self.keys if self.key is None else (self.key,)
        return tuple(key.get_secret_value().encode() for key in keys)

    def _name_by_caller(self) -> Naming:
        """Return the function that sets the identifier of the authenticated caller and its end user."""
        (key, *older), rejects = self._key_bytes(), self.mismatch == "reject"
        header = None if self.end_user_header is None else self.end_user_header.lower()

        def name(call: Call, context: Context) -> tuple[Call, Sequence[str]]:
            caller, end_user = context.caller, context.received.get(header, "") if header else ""
            derived, sent = derive_identifier(key, caller, end_user), call.body.get(FIELD)
            if rejects and sent not in (None, derived):
                raise PolicyViolation("mismatch", f"{FIELD} is set by the gateway; leave it out.", param=FIELD)
            named = call if sent == derived else call.with_fields(safety_identifier=derived)
            return named, [derive_identifier(old, caller, end_user) for old in older]

        return name

    def _name_by_request(self) -> Naming:
        """Return the function that checks the identifier of the request, and hashes it where that is configured."""
        keys, limit, require, pii = self._key_bytes(), min(self.max_chars, MAX_SEARCHED_CHARS), self.require, self.pii
        matches = None if self.pattern is None else compile_pattern(self.pattern)

        def name(call: Call, context: Context) -> tuple[Call, Sequence[str]]:
            sent = call.body.get(FIELD)
            if sent is None:
                if require:
                    raise PolicyViolation("required", f"{FIELD} is missing; this gateway requires one.", param=FIELD)
                return call, ()
            if not isinstance(sent, str):
                raise PolicyViolation("not_a_string", wrong_type(FIELD, "a string", sent), param=FIELD)
            if pii != "allow" and _is_personal(sent):
                if pii == "reject":
                    raise PolicyViolation("personal", f"{FIELD} looks like personal data; hash it.", param=FIELD)
                newest, *older = (hash_value(key, context.caller.team, sent) for key in keys)
                return call.with_fields(safety_identifier=newest), older
            if len(sent) > limit:
                found = f"{FIELD} has {len(sent)} characters; the limit is {limit}."
                raise PolicyViolation("too_long", found, param=FIELD)
            if matches is not None and not matches(sent):
                raise PolicyViolation("pattern", f"{FIELD} does not match the pattern {self.pattern}.", param=FIELD)
            return call, ()

        return name


class Blocklist:
    """The identifiers that are refused: those of the config, and those that the store has."""

    def __init__(self, store: Store, listed: frozenset[str]) -> None:
        self._store = store
        self._peek = store.peek
        self._listed = listed
        self._key_of = lru_cache(1024)(blocked_key)  # hashing takes longer than the look-up, and most of them recur
        self._outage = Outage()

    def refuse_blocked(self, call: Call, identifiers: Iterable[str]) -> Call | Awaitable[Call]:
        """Return a call with these identifiers. Raises PolicyViolation if one of them is blocked."""
        if self._peek is None:
            return self._ask(call, identifiers)
        for identifier in identifiers:
            if identifier in self._listed or self._peek(self._key_of(identifier)) is not None:
                raise _blocked()
        return call

    async def _ask(self, call: Call, identifiers: Iterable[str]) -> Call:
        for identifier in identifiers:
            if identifier in self._listed or await self._is_noted(identifier):
                raise _blocked()
        return call

    async def _is_noted(self, identifier: str) -> bool:
        """Whether the store has it; False while it fails, so that the config alone decides."""
        try:
            value = await self._store.get(self._key_of(identifier))
        except StoreError as error:
            if self._outage.begins():
                log.warning("blocklist.failed", error=short_message(error))
            return False
        if self._outage.failures:
            log.info("blocklist.resumed", failures=self._outage.end())
        return value is not None


def _blocked() -> PolicyViolation:
    return PolicyViolation("blocked", f"This {FIELD} is blocked.", param=FIELD)


def _remove_user(call: Call, *, moves: bool) -> Call:
    """Return a call without `user`; with `moves` it becomes the identifier if there is none."""
    user = call.body["user"]
    if moves and isinstance(user, str) and call.body.get(FIELD) is None:
        call = call.with_fields(safety_identifier=user)
    return call.without_fields("user")


def _is_personal(identifier: str) -> bool:
    """Whether a text looks like personal data, in any width, with or without accents and invisible characters."""
    if len(identifier) > MAX_SEARCHED_CHARS:
        return False
    if identifier.isascii() and identifier.isprintable():  # as it is after what follows
        return _PERSONAL.search(identifier) is not None
    # One character may decompose to eighteen, and the time to search grows with the length.
    letters = unicodedata.normalize("NFKD", identifier)[: 2 * MAX_SEARCHED_CHARS]
    visible = "".join(c for c in letters if unicodedata.category(c) not in ("Cf", "Mn", "Cc"))
    return _PERSONAL.search(visible) is not None
