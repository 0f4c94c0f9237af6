"""Bounds how many tokens a model may write for one response, its reasoning included.

Request: sets `default` when the caller gives no number, and clamps (or refuses with `too_many`) one above `max`. A
    number below 16, and what is no integer, is refused as the protocol words it.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-max_output_tokens
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from policies.support.integers import checked_integer

FIELD = "max_output_tokens"
LEAST = 16  # the protocol's own
Tokens = Annotated[int, Field(ge=LEAST)]


class OutputTokens(Policy):
    max: Tokens
    """The most that a caller may ask for, in tokens."""
    default: Tokens | None = None
    """What is sent for a caller that asks for no number; left out: `max`."""
    on_exceed: Literal["clamp", "reject"] = "clamp"
    """What happens to a call that asks for more: its number is lowered, or it is refused."""

    @model_validator(mode="after")
    def _default_within_max(self) -> Self:
        if self.default is not None and self.default > self.max:
            raise ValueError(f"default is {self.default}; max allows {self.max}")
        return self

    def judging(self) -> Judge:
        limit, default, rejects = self.max, self.default or self.max, self.on_exceed == "reject"

        def judge(call: Call) -> Call:
            asked = call.body.get(FIELD)
            if type(asked) is int and LEAST <= asked <= limit:
                return call
            if asked is None:
                return call.with_fields(max_output_tokens=default)
            if checked_integer(asked, FIELD, least=LEAST) > limit and rejects:
                raise PolicyViolation("too_many", f"{FIELD} is {asked}; the limit is {limit}.", param=FIELD)
            return call.with_fields(max_output_tokens=limit)

        return judge
