"""Decides which fields a request may have beside those of the protocol: an upstream may read what nothing has checked.

Request: refuses a field of `deny` with `denied`, in any spelling: by default the fields in which other protocols and
    gateways have models, tools, messages and routes. With unknown_fields = "refuse" every field that the protocol does
    not have is refused with `unknown`. The query is checked alike; of its parameters only `include` is the protocol's,
    and those of `query` are allowed beside it. Fields inside others are not checked here.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create, and support/alternatives.py for each name
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support import alternatives
from policies.support.alternatives import short_name
from policies.support.walk import plain_name
from proxy.context import Context
from proxy.wire.call import INPUT_OPERATIONS, Call, Operation
from proxy.wire.errors import PolicyViolation
from proxy.wire.query import INCLUDE, query_pairs

# The fields of requests to a model in OpenAI's API (OpenAPI 2.3.0 and openai-python 3.51), in its beta (multi_agent,
# background_options), and in Open Responses (the two penalties).
# Source: https://github.com/openai/openai-openapi, https://github.com/openresponses/openresponses
PROTOCOL_FIELDS = frozenset({
    "access_programs", "background", "background_options", "context_management", "conversation", "frequency_penalty",
    "image", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
    "moderation", "multi_agent", "parallel_tool_calls", "presence_penalty", "previous_response_id", "prompt",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier",
    "service_tier", "store", "stream", "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs",
    "top_p", "truncation", "user",
})  # fmt: skip
FIELDS_OF: Mapping[Operation, frozenset[str]] = {
    "create": PROTOCOL_FIELDS, "compact": PROTOCOL_FIELDS, "input_tokens": PROTOCOL_FIELDS | {"personality"},
    "conversation": frozenset({"items", "metadata"}), "items": frozenset({"items"}),
}  # fmt: skip
QUERY_FIELDS = frozenset({plain_name(INCLUDE), ""})  # between two separators there may be nothing
DENIED_FIELDS = (
    *alternatives.MODELS, *alternatives.TOOLS, *alternatives.INPUT, *alternatives.ANY, *alternatives.ROUTING,
)  # fmt: skip


class Fields(Policy):
    operations: ClassVar[frozenset[Operation]] = INPUT_OPERATIONS

    unknown_fields: Literal["pass", "refuse"] = "pass"
    """What happens to a field that the protocol does not have: it is sent to the upstream, or the call is refused."""
    query: tuple[str, ...] = ("api-version",)
    """Parameters of the query that are allowed with unknown_fields = "refuse", in any spelling. Clients of Azure send
    the one of the default."""
    deny: tuple[str, ...] = DENIED_FIELDS
    """Names of fields that are refused in any spelling; no globs. Default: those that an upstream is known to read."""

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state
        refuses_unknown, denied = self.unknown_fields == "refuse", frozenset(map(plain_name, self.deny))
        allowed = QUERY_FIELDS.union(map(plain_name, self.query)) if refuses_unknown else None

        def check(call: Call, _context: Context) -> Call:
            known = FIELDS_OF[call.operation]
            if call.query:
                _check_query(call.query, denied, allowed)
            for name in call.body:
                if plain_name(name) in denied:
                    message = f"The body has a field '{short_name(name)}'; it is not allowed."
                    raise PolicyViolation("denied", message, param=short_name(name))
                if refuses_unknown and name not in known:
                    message = f"The body has a field '{short_name(name)}'; only the protocol's fields are allowed."
                    raise PolicyViolation("unknown", message, param=short_name(name))
            return call

        return Repeatable(check)


def _check_query(query: str, denied: frozenset[str], allowed: frozenset[str] | None) -> None:
    """Raises PolicyViolation for a parameter that is denied, or is none of those that are allowed; None: all are."""
    for name, _ in query_pairs(query):
        plain = plain_name(name)
        if plain in denied:
            message = f"The query has '{short_name(name)}'; it is not allowed."
            raise PolicyViolation("denied", message, param=short_name(name))
        if allowed is not None and plain not in allowed:
            message = f"The query has '{short_name(name)}'; only 'include' and the names of `query` are allowed."
            raise PolicyViolation("unknown", message, param=short_name(name))
