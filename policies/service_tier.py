"""Says which service tiers callers may ask for: a faster one costs more, a slower one may be refused.

Request: sets `default` when the caller names no tier, and refuses one that `allow` leaves out with `not_allowed`, and
    what is no string with `not_a_string`.
Response: passes; it shows the tier that was used.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-service_tier
"""

from typing import Self

from pydantic import model_validator

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from proxy.wire.names import Globs

FIELD = "service_tier"
UNNAMED = "auto"  # what a call without a tier means to the protocol


class ServiceTier(Policy):
    allow: tuple[str, ...] = ("*",)
    """Tiers that may be asked for; `*` and `?` stand for any characters."""
    default: str | None = None
    """What is sent for a caller that names no tier; left out: nothing, which means "auto"."""

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        default = self.default or UNNAMED
        if not Globs(self.allow).allows(default):
            raise ValueError(f'allow leaves out "{default}", the tier of calls that name none; give another default')
        return self

    def judging(self) -> Judge:
        default, allows = self.default, Globs(self.allow).allows

        def judge(call: Call) -> Call:
            asked = call.body.get(FIELD)
            if asked is None:
                return call.with_fields(service_tier=default) if default else call
            if not isinstance(asked, str):
                raise PolicyViolation("not_a_string", f"{FIELD} is not a string.", param=FIELD)
            if not allows(asked):
                raise PolicyViolation("not_allowed", f"{FIELD} is '{asked[:64]}'; it is not allowed.", param=FIELD)
            return call

        return judge
