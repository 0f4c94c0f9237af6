"""One sentence: what this policy is for.

Request: what it refuses or changes, with the codes of the refusals.
Response: what it checks in the reply, or "passes".
Source: the link to the specification of the fields it checks.
"""

from policies import Policy, PolicyState, Repeatable, RequestCheck
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation


class Template(Policy):
    """Copy this file, rename it and the class, and name it in the config: use = "your_name"."""

    forbidden_model: str = ""
    """The model that no call may use."""

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state
        forbidden = self.forbidden_model

        def check(call: Call, _context: Context) -> Call:
            if call.model == forbidden:
                raise PolicyViolation("forbidden", f"model is {call.model}; it is not allowed.", param="model")
            return call

        return Repeatable(check)
