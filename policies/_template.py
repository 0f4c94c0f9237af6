"""One sentence: what this policy is for.

Request: what is refused or changed, with the codes of the refusals.
Response: what is watched in the reply, or "passes".
Source: the link to what the rule is taken from.
"""

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation


class Template(Policy):
    """Copy this file, rename it and the class, and name it in the config: use = "your_name"."""

    forbidden_model: str = ""
    """The model that nobody may ask."""

    def judging(self) -> Judge:
        forbidden = self.forbidden_model

        def judge(call: Call) -> Call:
            if call.model == forbidden:
                raise PolicyViolation("forbidden", f"model is {call.model}; it is not allowed.", param="model")
            return call

        return judge
