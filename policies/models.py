"""Says which models may be asked, and gives them names of the organisation's own.

Request: an alias is replaced by the model it stands for; then `deny` and `allow` judge that model, and refuse it with
    `not_allowed`. A model that is missing or no string is refused with `not_a_string`. Policies, routes and the cache
    that come later see the new name.
Response: passes; it shows the upstream's own name for the model.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-model
"""

from typing import Annotated

from pydantic import Field

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from proxy.wire.names import Globs

FIELD = "model"
Name = Annotated[str, Field(min_length=1)]


class Models(Policy):
    allow: tuple[str, ...] = ("*",)
    """Names of models that may be asked; `*` and `?` stand for any characters."""
    deny: tuple[str, ...] = ()
    """Names that may not, even if `allow` has them; other case, width and unseen characters do not help."""
    aliases: dict[str, Name] = Field(default={})
    """What is sent on for a name that is asked, in one step; `allow` and `deny` judge what is sent on."""

    def judging(self) -> Judge:
        aliases, globs = self.aliases, Globs(self.allow, self.deny)

        def judge(call: Call) -> Call:
            asked = call.body.get(FIELD)
            if not isinstance(asked, str):
                raise PolicyViolation("not_a_string", f"{FIELD} is missing or not a string.", param=FIELD)
            model = aliases.get(asked, asked) if aliases else asked
            if not globs.allows(model):
                raise PolicyViolation("not_allowed", f"{FIELD} is '{asked[:64]}'; it is not allowed.", param=FIELD)
            return call if model == asked else call.with_fields(model=model)

        return judge
