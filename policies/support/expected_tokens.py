"""How many tokens a call will probably use, so that they can be reserved before it is made, and how many it did use."""

from cachetools import LRUCache

from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.token_estimate import BYTES_PER_TOKEN

FIRST_OUTPUT = 1_024
"""What is expected of a model that has not answered yet."""
MARGIN = 2.0
"""How many times its usual answer is reserved for a model."""
WEIGHT = 0.1
"""How much the last answer counts in what is usual."""
LARGEST = 2**40


class ExpectedTokens:
    """Expects of each model about what it has generated before: the limit of a call is far above what most use."""

    def __init__(self) -> None:
        self._usual: LRUCache[str, float] = LRUCache(1_000)

    def of(self, call: Call) -> int:
        """Return the tokens of a call's input and output together."""
        return sum(self.parts_of(call))

    def parts_of(self, call: Call) -> tuple[int, int]:
        """Return the tokens of a call's input and of its output; those of a count of tokens are 0."""
        if call.operation in ("input_tokens", "bodiless"):
            return 0, 0
        output = int(MARGIN * self._usual.get(call.model, FIRST_OUTPUT / MARGIN))
        if call.operation == "relay":  # what its answer has is not known
            output = 0
        limit = call.body.get("max_output_tokens")
        if type(limit) is int and 0 <= limit < output:
            output = limit
        return call.size_bytes // BYTES_PER_TOKEN, output

    def used(self, call: Call, context: Context, reserved: int) -> int:
        """Return what a call has used: as its record says, estimates included; what was reserved if that says nothing;
        nothing if no backend has worked on it.
        """
        if not context.is_sent and not context.is_answered:
            return 0
        counts = context.record.input_tokens, context.record.output_tokens
        found = [count for count in counts if type(count) is int and 0 <= count < LARGEST]
        if len(found) < len(counts):
            return reserved
        if context.record.estimated is None:
            before = self._usual.get(call.model, found[1])
            self._usual[call.model] = before + WEIGHT * (found[1] - before)
        return sum(found)
