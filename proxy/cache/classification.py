"""What each part of a request has to do with its answer: the one table behind the cache key.

A part that is not in the table counts as one that changes the answer, so that a new field of the protocol never makes
two different calls share an entry. A test compares the table with the protocol's documents and with openai-python.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache


class Effect(Enum):
    """What a part of a request does. Only the first and the last are in the key."""

    ANSWER = "changes the answer"
    ATTRIBUTION = "says who asks, and for whom"
    ROUTING = "chooses the machine that answers"
    TRANSPORT = "says how the answer is delivered"
    SIDE_EFFECT = "has an effect beside the answer"


IN_KEY = frozenset({Effect.ANSWER, Effect.SIDE_EFFECT})

FIELDS: Mapping[str, Effect] = {
    "access_programs": Effect.ANSWER,
    "background": Effect.SIDE_EFFECT,
    "background_options": Effect.SIDE_EFFECT,
    "context_management": Effect.ANSWER,
    "conversation": Effect.SIDE_EFFECT,  # the answer is added to it
    "frequency_penalty": Effect.ANSWER,
    "image": Effect.ANSWER,
    "include": Effect.ANSWER,
    "input": Effect.ANSWER,
    "instructions": Effect.ANSWER,
    "max_output_tokens": Effect.ANSWER,
    "max_tool_calls": Effect.ANSWER,
    "metadata": Effect.ATTRIBUTION,  # echoed: each caller gets its own, see entry.py
    "model": Effect.ANSWER,
    "moderation": Effect.ANSWER,
    "multi_agent": Effect.ANSWER,
    "parallel_tool_calls": Effect.ANSWER,
    "presence_penalty": Effect.ANSWER,
    "previous_response_id": Effect.ANSWER,
    "prompt": Effect.ANSWER,
    "prompt_cache_key": Effect.ANSWER,  # echoed; and callers separate their entries with it
    "prompt_cache_options": Effect.ANSWER,  # may ask for diagnostics
    "prompt_cache_retention": Effect.ANSWER,  # echoed
    "reasoning": Effect.ANSWER,
    "safety_identifier": Effect.ATTRIBUTION,  # echoed
    "service_tier": Effect.ANSWER,
    "store": Effect.SIDE_EFFECT,  # the id of an answer that is not stored cannot be continued
    "stream": Effect.TRANSPORT,
    "stream_options": Effect.TRANSPORT,
    "temperature": Effect.ANSWER,
    "text": Effect.ANSWER,
    "tool_choice": Effect.ANSWER,
    "tools": Effect.ANSWER,
    "top_logprobs": Effect.ANSWER,
    "top_p": Effect.ANSWER,
    "truncation": Effect.ANSWER,
    "user": Effect.ATTRIBUTION,  # echoed
}
"""The top-level fields of a body. What is inside a field belongs to it."""

MESSAGE_FIELDS: Mapping[str, Effect] = {
    "generate": Effect.SIDE_EFFECT,  # false: nothing is generated, and nothing is looked up
    "stream_id": Effect.TRANSPORT,
    "type": Effect.TRANSPORT,
}
"""The fields that a message of WebSocket mode has beside them. They are read before there is a call."""

HEADERS: Mapping[str, Effect] = {
    "agent-framework-version": Effect.ATTRIBUTION,
    "idempotency-key": Effect.TRANSPORT,
    "openai-beta": Effect.ANSWER,
    "originator": Effect.ATTRIBUTION,
    "session-id": Effect.ATTRIBUTION,
    "session_id": Effect.ATTRIBUTION,
    "thread-id": Effect.ATTRIBUTION,
    "user-agent": Effect.ATTRIBUTION,
    "x-client-request-id": Effect.ATTRIBUTION,
    "x-codex-*": Effect.ANSWER,
    "x-initiator": Effect.ATTRIBUTION,
    "x-interaction-type": Effect.ATTRIBUTION,
    "x-irid": Effect.ATTRIBUTION,
    "x-openai-internal-codex-responses-lite": Effect.ANSWER,
    "x-promptfoo-version": Effect.ATTRIBUTION,
    "x-session-affinity": Effect.ROUTING,
    "x-session-id": Effect.ATTRIBUTION,
    "x-stainless-*": Effect.TRANSPORT,
}
"""The headers that a backend may see, in lower case; one that ends in `*` stands for all that begin like it."""

QUERY: Mapping[str, Effect] = {"beta": Effect.ANSWER, "include": Effect.ANSWER}
"""The parameters of the query."""

FIELDS_NOT_IN_KEY = frozenset(name for name, effect in FIELDS.items() if effect not in IN_KEY)
PARAMETERS_NOT_IN_KEY = frozenset(name for name, effect in QUERY.items() if effect not in IN_KEY)
SIDE_EFFECTS = frozenset(name for name, effect in FIELDS.items() if effect is Effect.SIDE_EFFECT)


def effect_of_header(name: str) -> Effect:
    """Return what a header does, by its name in lower case."""
    known = HEADERS.get(name)
    if known is not None:
        return known
    prefixes = {name[:-1]: effect for name, effect in HEADERS.items() if name.endswith("*")}
    return next((effect for prefix, effect in prefixes.items() if name.startswith(prefix)), Effect.ANSWER)


@lru_cache(1024)
def is_header_in_key(name: str) -> bool:
    """Whether a header, by its name in lower case, is in the key. The same few names are looked up again and again."""
    return effect_of_header(name) in IN_KEY
