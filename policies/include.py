"""Decides what a response may include beside its text: search results, reasoning, log probabilities.

Request: a value of `include` that is not allowed is refused with `not_allowed`, or removed; anything but a list of
    strings is refused with `not_an_array` and `not_a_string`. The same rules apply to values in the query
    (`?include[]=`), which are always refused and never removed.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-include
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support.globs import AllowList
from proxy.context import Context
from proxy.wire.call import MODEL_OPERATIONS, Call, Operation
from proxy.wire.errors import PolicyViolation
from proxy.wire.loggable import clip
from proxy.wire.query import query_pairs
from proxy.wire.refusals import wrong_type

FIELD = "include"


class Include(Policy):
    operations: ClassVar[frozenset[Operation]] = MODEL_OPERATIONS | {"items", "access", "conversation"}

    allow: tuple[str, ...] = ("*",)
    """Values that a call may request; `*` and `?` are wildcards."""
    deny: tuple[str, ...] = ()
    """Values that it may not, even if `allow` has them, in any case and width, with or without invisible characters."""
    on_deny: Literal["reject", "remove"] = "reject"
    """What happens to a call that requests a denied value: it is refused, or sent on without that value."""

    def is_idle(self) -> bool:
        return AllowList(self.allow, self.deny).allows_all

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state
        allows, rejects = AllowList(self.allow, self.deny).allows, self.on_deny == "reject"

        def check(call: Call, _context: Context) -> Call:
            for value in _query_values(call.query) if call.query else ():
                if not allows(value):
                    raise _not_allowed(value, FIELD)
            requested = call.body.get(FIELD)
            if requested is None:
                return call
            if not isinstance(requested, list):
                raise PolicyViolation("not_an_array", wrong_type(FIELD, "an array of strings", requested), param=FIELD)
            kept = list(_allowed_values(requested, allows, rejects=rejects))
            return call if len(kept) == len(requested) else call.with_fields(include=kept)

        return Repeatable(check)


def _allowed_values(values: list[object], allows: Callable[[object], bool], *, rejects: bool) -> Iterator[str]:
    """Yield the values that are allowed. Raises PolicyViolation."""
    for index, value in enumerate(values):
        param = f"{FIELD}[{index}]"
        if not isinstance(value, str):
            raise PolicyViolation("not_a_string", wrong_type(param, "a string", value), param=param)
        if allows(value):
            yield value
        elif rejects:
            raise _not_allowed(value, param)


def _not_allowed(value: str, param: str) -> PolicyViolation:
    return PolicyViolation("not_allowed", f"{param} is '{clip(value, 64)}'; it is not allowed.", param=param)


def _query_values(query: str) -> Iterator[str]:
    """Yield the values of `include` in a query, in each of the forms in which clients write a list."""
    for name, values in query_pairs(query):
        if name == FIELD:
            yield from filter(None, values.split(","))
