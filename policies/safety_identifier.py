"""Holds somebody to account for every call: checks the caller's safety_identifier, or derives one it cannot choose.

Request: with source = "request", refuses with `required`, `not_a_string`, `too_long`, `pattern`. With source =
    "caller", the field is always replaced by HMAC-SHA256(key, team and caller) in base64url, 43 characters: no value
    that a client sends can change what goes out, and nobody without the key can tell who is behind it.
Response: passes.
Source: https://platform.openai.com/docs/guides/safety-best-practices#implement-safety-identifiers
"""

import base64
import hashlib
import hmac
import re
from typing import Literal, Self

from pydantic import PositiveInt, field_validator, model_validator

from policies import Policy
from proxy.settings import Secret
from proxy.wire.call import Call, Caller
from proxy.wire.errors import PolicyViolation

FIELD = "safety_identifier"


class SafetyIdentifier(Policy):
    source: Literal["request", "caller"] = "request"
    """Who names the identifier: the request (it is checked), or the gate from the authenticated caller."""
    require: bool = False
    """Whether a request without one is refused."""
    pattern: str | None = None
    """A regular expression (ASCII classes) that the whole identifier must match."""
    max_chars: PositiveInt = 64
    """How long it may be, in characters; some upstreams allow 128."""
    key: Secret | None = None
    """The key of the HMAC, for source = "caller"."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "", re.ASCII)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _key_for_caller(self) -> Self:
        if self.source == "caller" and self.key is None:
            raise ValueError('source = "caller" needs a key: key = "env:NAME"')
        return self

    async def on_request(self, call: Call) -> Call:
        if self.key is not None and self.source == "caller":
            return call.with_fields(safety_identifier=derived(self.key.get_secret_value().encode(), call.caller))
        self._check(call.body.get(FIELD))
        return call

    def _check(self, identifier: object) -> None:
        if identifier is None:
            if self.require:
                raise PolicyViolation("required", f"{FIELD} is missing; this gate requires one.", param=FIELD)
            return
        if not isinstance(identifier, str):
            raise PolicyViolation("not_a_string", f"{FIELD} is not a string.", param=FIELD)
        if len(identifier) > self.max_chars:
            found = f"{FIELD} has {len(identifier)} characters; the limit is {self.max_chars}."
            raise PolicyViolation("too_long", found, param=FIELD)
        if self.pattern is not None and not re.fullmatch(self.pattern, identifier, re.ASCII):
            raise PolicyViolation("pattern", f"{FIELD} does not match the pattern {self.pattern}.", param=FIELD)


def derived(key: bytes, caller: Caller) -> str:
    """The identifier of a caller, 43 characters of base64url. A length stands before each name: no two callers meet."""
    team, name = caller.team.encode(), caller.name.encode()
    principal = b"%d:%b%d:%b" % (len(team), team, len(name), name)
    digest = hmac.digest(key, b"headgate safety_identifier 1\0" + principal, hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
