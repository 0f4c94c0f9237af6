"""previous_response_id and conversation -> full input, for backends that keep no state.

Headgate keeps no responses of its own yet, so it knows none by its id; it says so rather than answer without the past.
"""

from backends import Backend
from proxy.wire.call import Call
from proxy.wire.errors import RequestError


class History:
    async def complete(self, call: Call, backend: Backend) -> Call:
        """The call with all it refers to. Raises RequestError when that is not there."""
        if backend.keeps_state:
            return call
        previous = call.body.get("previous_response_id")
        if previous is not None:
            raise RequestError(
                f"Previous response with id '{str(previous)[:80]}' not found.",
                code="previous_response_not_found", param="previous_response_id",
            )  # fmt: skip
        conversation = call.body.get("conversation")
        if conversation is not None:
            named = conversation.get("id", "") if isinstance(conversation, dict) else conversation
            raise RequestError(f"Conversation with id '{str(named)[:80]}' not found.", status=404, param="conversation")
        return call
