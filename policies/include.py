"""Says what callers may have included in a response beside its text: search results, reasoning, log probabilities.

Request: a value of `include` that is not allowed is refused with `not_allowed`, or removed; `not_an_array` and
    `not_a_string` refuse what is no list of strings. A value in the query (`?include[]=`) is judged alike, and never
    removed: it is refused.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-include
"""

from collections.abc import Iterator
from typing import Literal
from urllib.parse import parse_qsl

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from proxy.wire.names import Globs

FIELD = "include"


class Include(Policy):
    allow: tuple[str, ...] = ("*",)
    """Values that may be asked for; `*` and `?` stand for any characters."""
    deny: tuple[str, ...] = ()
    """Values that may not, even if `allow` has them; other case, width and unseen characters do not help."""
    on_deny: Literal["reject", "remove"] = "reject"
    """What happens to a call that asks for one: it is refused, or it is sent on without that value."""

    def judging(self) -> Judge:
        globs = Globs(self.allow, self.deny)

        def judge(call: Call) -> Call:
            for value in _queried(call.query) if call.query else ():
                if not globs.allows(value):
                    raise _not_allowed(value, FIELD)
            asked = call.body.get(FIELD)
            if asked is None:
                return call
            if not isinstance(asked, list):
                raise PolicyViolation("not_an_array", f"{FIELD} is not an array of strings.", param=FIELD)
            kept = list(self._kept(asked, globs))
            return call if len(kept) == len(asked) else call.with_fields(include=kept)

        return judge

    def _kept(self, asked: list[object], globs: Globs) -> Iterator[str]:
        for index, value in enumerate(asked):
            param = f"{FIELD}[{index}]"
            if not isinstance(value, str):
                raise PolicyViolation("not_a_string", f"{param} is not a string.", param=param)
            if globs.allows(value):
                yield value
            elif self.on_deny == "reject":
                raise _not_allowed(value, param)


def _not_allowed(value: str, param: str) -> PolicyViolation:
    return PolicyViolation("not_allowed", f"{param} is '{value[:64]}'; it is not allowed.", param=param)


def _queried(query: str) -> Iterator[str]:
    """Values that stand in the query, in each of the ways that clients write a list."""
    for name, values in parse_qsl(query):
        if name.partition("[")[0] == FIELD:
            yield from filter(None, values.split(","))
