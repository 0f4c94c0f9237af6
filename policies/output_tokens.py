"""Limits how many tokens a model may generate for one response, including its reasoning.

Request: sets `default` when the caller gives no number; lowers a number above `max`, or refuses it with `too_many`. A
    number below 16 (or what a backend allows), and anything but an integer, is refused in the protocol's own words.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-max_output_tokens
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support.integers import checked_integer
from proxy.context import Context
from proxy.wire.call import Call, Operation
from proxy.wire.errors import PolicyViolation

FIELD = "max_output_tokens"
MINIMUM = 16  # the protocol's own
Tokens = Annotated[int, Field(ge=MINIMUM)]


class OutputTokens(Policy):
    operations: ClassVar[frozenset[Operation]] = frozenset({"create"})

    max: Tokens
    """The largest number that a caller may request, in tokens."""
    default: Tokens | None = None
    """The number that is set for a caller that gives none. Default: `max`."""
    on_exceed: Literal["clamp", "reject"] = "clamp"
    """What happens to a call that requests more: its number is lowered to `max`, or it is refused."""

    @model_validator(mode="after")
    def _default_within_max(self) -> Self:
        if self.default is not None and self.default > self.max:
            raise ValueError(f"default is {self.default}; max allows {self.max}")
        return self

    def request_check(self, state: PolicyState) -> RequestCheck:
        least = state.least_values.get(FIELD, MINIMUM)
        limit, default, rejects = self.max, self.default or self.max, self.on_exceed == "reject"

        def check(call: Call, _context: Context) -> Call:
            requested = call.body.get(FIELD)
            if type(requested) is int and least <= requested <= limit:
                return call
            if requested is None:
                return call.with_fields(max_output_tokens=default)
            if checked_integer(requested, FIELD, least=least) > limit and rejects:
                raise PolicyViolation("too_many", f"{FIELD} is {requested}; the limit is {limit}.", param=FIELD)
            return call.with_fields(max_output_tokens=limit)

        return Repeatable(check)
