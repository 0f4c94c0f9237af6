"""Says what an upstream may keep of a call: stored responses, background jobs, conversations.

Request: with store = "force_off", `store` is set to false; with "reject", a call that would be stored is refused with
    `store`, as is one that says nothing, since the protocol's default is true. Either way `background` and
    `conversation` are refused, each with its own name as the code: they keep what store = false would not. Each can
    be denied by itself, too, and so can `previous_response_id`. `not_a_boolean` refuses what is neither true nor false.
Response: passes.
Source: https://platform.openai.com/docs/guides/your-data
"""

from typing import Literal

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation


class Retention(Policy):
    store: Literal["allow", "force_off", "reject"] = "allow"
    """Whether responses may be stored; if not: store is set to false, or a call without store = false is refused."""
    background: Literal["allow", "deny"] = "allow"
    """Whether calls may run in the background; they need store = "allow"."""
    conversation: Literal["allow", "deny"] = "allow"
    """Whether calls may add to a conversation, whose items are kept; they need store = "allow"."""
    previous_response_id: Literal["allow", "deny"] = "allow"
    """Whether calls may go on from a response that is kept: a stored one, or the last one of a WebSocket."""

    def judging(self) -> Judge:
        stores = self.store == "allow"

        def judge(call: Call) -> Call:
            body = call.body  # asked for four names, it answers sooner than it is walked through
            if "background" in body or "conversation" in body or "previous_response_id" in body or "store" in body:
                return self._judged(call)
            return call if stores else self._judged(call)

        return judge

    def _judged(self, call: Call) -> Call:
        stored = _flag(call, "store", default=True)
        off = self.store != "allow"
        if _flag(call, "background", default=False) and (off or self.background == "deny"):
            raise _refused("background", "is true; running in the background is not allowed")
        if call.body.get("conversation") is not None and (off or self.conversation == "deny"):
            raise _refused("conversation", "is given; conversations are not allowed")
        if call.body.get("previous_response_id") is not None and self.previous_response_id == "deny":
            raise _refused("previous_response_id", "is given; going on from a kept response is not allowed")
        if not stored or not off:
            return call
        if self.store == "reject":
            raise _refused("store", "is true, which is its default; only false is allowed")
        return call.with_fields(store=False)


def _flag(call: Call, field: str, *, default: bool) -> bool:
    """A boolean of the body; absent or null it has the protocol's default."""
    value = call.body.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise PolicyViolation("not_a_boolean", f"{field} is neither true nor false.", param=field)
    return value


def _refused(field: str, found: str) -> PolicyViolation:
    return PolicyViolation(field, f"{field} {found}.", param=field)
