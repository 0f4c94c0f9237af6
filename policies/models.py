"""Decides which models may be used, and lets the organisation give them names of its own.

Request: an alias is replaced by the model it stands for; `deny` and `allow` then apply to that model, and refuse it
    with `not_allowed`. A model that is not a string is refused with `not_a_string`. Where models are restricted, so is
    a call without one (a prompt template may name it), and fields in which some upstreams take other models (`models`,
    `fallbacks` ...) are refused with `alternative_field`. Later policies, routes and the cache see the new name. On
    relayed paths the same holds for a JSON body, which may have no model, and for that field of a form, in which an
    alias is refused; files are not read.
Response: passes; it shows the upstream's own name of the model.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-model
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Annotated, ClassVar

from pydantic import Field

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support import alternatives
from policies.support.globs import AllowList
from proxy.context import Context
from proxy.wire.call import MODEL_OPERATIONS, RELAYED_FIELDS, Call, Operation
from proxy.wire.errors import PolicyViolation
from proxy.wire.fields import normalize
from proxy.wire.loggable import clip
from proxy.wire.refusals import wrong_type

FIELD = "model"
NO_MODEL = f"Missing required parameter: '{FIELD}'."
Name = Annotated[str, Field(min_length=1)]
# Source: https://platform.openai.com/docs/models (gpt-5-pro-2025-10-06), and -20251006 or @20251006 elsewhere
_SNAPSHOT = re.compile(r"[-@]20[0-9]{2}-?[0-9]{2}-?[0-9]{2}\s*$")


class Models(Policy):
    operations: ClassVar[frozenset[Operation]] = MODEL_OPERATIONS | RELAYED_FIELDS

    allow: tuple[str, ...] = ("*",)
    """Names of models that may be used; `*` and `?` are wildcards."""
    deny: tuple[str, ...] = ()
    """Names that may not, even if `allow` has them, in any case and width, with or without invisible characters.

    A name also denies its dated snapshots: "*-pro" denies gpt-5-pro-2025-10-06."""
    aliases: dict[str, Name] = Field(default={})
    """The model that replaces a requested name, in one step; `allow` and `deny` apply to the replacement."""

    def is_idle(self) -> bool:
        return AllowList(self.allow, self.deny).allows_all and not self.aliases

    def refuses_all(self) -> bool:
        return not self.allow

    def renames(self) -> Mapping[str, str]:
        return self.aliases

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state
        resolve, is_restricted = self._resolve, not AllowList(self.allow, self.deny).allows_all
        refuse_alternatives = alternatives.alternatives_check(alternatives.MODELS)

        def check(call: Call, _context: Context) -> Call:
            if is_restricted:
                refuse_alternatives(call.body, call.query)
            requested = call.body.get(FIELD)
            if requested is None and (not is_restricted or call.operation in RELAYED_FIELDS):
                return call
            if not isinstance(requested, str):
                if requested is None:
                    raise PolicyViolation("not_a_string", NO_MODEL, param=FIELD, code="missing_required_parameter")
                raise PolicyViolation("not_a_string", wrong_type(FIELD, "a string", requested), param=FIELD)
            model = resolve(requested)
            if model is None:
                raise PolicyViolation(
                    "not_allowed", f"{FIELD} is '{clip(requested, 64)}'; it is not allowed.", param=FIELD
                )
            return call if model == requested else call.with_fields(model=model)

        return Repeatable(check)

    def resolve_model(self, model: str) -> str | None:
        return self._resolve(model)

    def model_names(self) -> Iterable[str]:
        return self.aliases

    @cached_property
    def _resolve(self) -> Callable[[str], str | None]:
        """Return the function from a requested model to the one that is sent on, None where it is not allowed."""
        aliases, names, has_denied = self.aliases, AllowList(self.allow, self.deny), bool(self.deny)

        def resolve(requested: str) -> str | None:
            model = aliases.get(requested, requested) if aliases else requested
            if not names.allows(model) or (has_denied and names.denies(_SNAPSHOT.sub("", normalize(model)))):
                return None
            return model

        return resolve
