"""Decides which service tiers callers may request: a faster tier costs more, a slower one may fail under load.

Request: sets `default` when the caller names no tier; refuses a tier that is not in `allow` with `not_allowed`, and
    anything but a string with `not_a_string`. On relayed paths a JSON body or a form is checked in the same way, and
    no tier is set.
Response: passes; it shows the tier that was used.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-service_tier
"""

from typing import ClassVar, Self

from pydantic import model_validator

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support.globs import AllowList
from proxy.context import Context
from proxy.wire.call import RELAYED_FIELDS, Call, Operation
from proxy.wire.errors import PolicyViolation
from proxy.wire.loggable import clip
from proxy.wire.refusals import wrong_type

FIELD = "service_tier"
PROTOCOL_DEFAULT = "auto"  # the tier of a call that names none


class ServiceTier(Policy):
    operations: ClassVar[frozenset[Operation]] = RELAYED_FIELDS | {"create", "compact"}

    allow: tuple[str, ...] = ("*",)
    """Tiers that a call may request; `*` and `?` are wildcards."""
    default: str | None = None
    """The tier that is set for a caller that names none. Default: none is set, which means "auto"."""

    @model_validator(mode="after")
    def _allow_has_default(self) -> Self:
        default = self.default or PROTOCOL_DEFAULT
        if not AllowList(self.allow).allows(default):
            raise ValueError(f'allow lacks "{default}", the tier of calls that name none; add it or change default')
        return self

    def is_idle(self) -> bool:
        return self.default is None and AllowList(self.allow).allows_all

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state
        default, allows = self.default, AllowList(self.allow).allows

        def check(call: Call, _context: Context) -> Call:
            requested = call.body.get(FIELD)
            if requested is None:
                is_set = default and call.operation not in RELAYED_FIELDS
                return call.with_fields(service_tier=default) if is_set else call
            if not isinstance(requested, str):
                raise PolicyViolation("not_a_string", wrong_type(FIELD, "a string", requested), param=FIELD)
            if not allows(requested):
                raise PolicyViolation(
                    "not_allowed", f"{FIELD} is '{clip(requested, 64)}'; it is not allowed.", param=FIELD
                )
            return call

        return Repeatable(check)
