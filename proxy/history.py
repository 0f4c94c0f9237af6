"""previous_response_id and conversation -> full input, for backends that keep no state.

The gateway stores no responses of its own yet, so it knows none by its id; it refuses such a call rather than answer
without the earlier turns.
"""

from proxy.context import Context
from proxy.routing.routes import Route
from proxy.state.ownership import not_found
from proxy.wire.call import Call


class History:
    """Completes calls to backends that keep no state."""

    async def complete(self, call: Call, route: Route, _context: Context) -> Call:
        """Return the call with everything that it refers to. Raises RequestError if that is unknown."""
        if route.keeps_state:
            return call
        previous = call.body.get("previous_response_id")
        if previous is not None:
            raise not_found("previous_response_id", str(previous))
        conversation = call.body.get("conversation")
        if conversation is not None:
            name = conversation.get("id", "") if isinstance(conversation, dict) else conversation
            raise not_found("conversation", str(name))
        return call
