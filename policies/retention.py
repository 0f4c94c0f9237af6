"""Decides what an upstream may keep of a call: stored responses, background jobs, conversations.

Request: with store = "force_off", `store` is set to false; with "reject", a call that would be stored is refused with
    `store`, also one without the field, because the protocol's default is true. Both also refuse `background` and
    `conversation`, each with its own name as the code, because they keep what store = false would not. Each of these
    two, and `previous_response_id`, can also be denied alone. Where conversations are denied, none is created, changed
    or added to. A flag that is not a boolean is refused with
    `not_a_boolean`.
Response: passes.
Source: https://platform.openai.com/docs/guides/your-data
"""

from typing import ClassVar, Literal

from policies import Policy, PolicyState, Repeatable, RequestCheck
from proxy.context import Context
from proxy.wire.call import INPUT_OPERATIONS, MODEL_OPERATIONS, Call, Operation
from proxy.wire.errors import PolicyViolation
from proxy.wire.refusals import wrong_type

Permission = Literal["allow", "deny"]


class Retention(Policy):
    operations: ClassVar[frozenset[Operation]] = INPUT_OPERATIONS

    store: Literal["allow", "force_off", "reject"] = "allow"
    """Whether responses may be stored; if not, store is set to false, or a call without store = false is refused."""
    background: Permission = "allow"
    """Whether calls may run in the background; they need store = "allow"."""
    conversation: Permission = "allow"
    """Whether calls may add to a conversation, which keeps its items; they need store = "allow"."""
    previous_response_id: Permission = "allow"
    """Whether calls may continue a response that was kept: a stored one, or the last one of a WebSocket."""

    def is_idle(self) -> bool:
        return not self.model_dump(exclude_defaults=True)

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state
        stores, rejects = self.store == "allow", self.store == "reject"
        denies_background = not stores or self.background == "deny"
        denies_conversation = not stores or self.conversation == "deny"
        denies_previous = self.previous_response_id == "deny"

        def check(call: Call, _context: Context) -> Call:
            body = call.body
            if call.operation not in MODEL_OPERATIONS:  # the request itself keeps something in a conversation
                if denies_conversation:
                    raise _refusal("conversation", "is created or changed; conversations are not allowed")
                return call
            if stores and not (  # looking up four names is faster than reading their values
                "background" in body or "conversation" in body or "previous_response_id" in body or "store" in body
            ):
                return call
            store = _read_flag(body.get("store"), "store", default=True)
            if _read_flag(body.get("background"), "background", default=False) and denies_background:
                raise _refusal("background", "is true; running in the background is not allowed")
            if denies_conversation and body.get("conversation") is not None:
                raise _refusal("conversation", "is given; conversations are not allowed")
            if denies_previous and body.get("previous_response_id") is not None:
                raise _refusal("previous_response_id", "is given; continuing a stored response is not allowed")
            if stores or not store or call.operation != "create":  # other requests keep no response
                return call
            if rejects:
                raise _refusal("store", "is true, which is its default; only false is allowed")
            return call.with_fields(store=False)

        return Repeatable(check)


def _read_flag(value: object, field: str, *, default: bool) -> bool:
    """Return a boolean of the body; absent or null it has the protocol's default. Raises PolicyViolation."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise PolicyViolation("not_a_boolean", wrong_type(field, "a boolean", value), param=field)
    return value


def _refusal(field: str, found: str) -> PolicyViolation:
    return PolicyViolation(field, f"{field} {found}.", param=field)
