"""How many tokens a call will probably use, so that they can be reserved before it is made, and how many it did use."""

from collections import OrderedDict

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
UNUSED = ("input_tokens", "bodiless")
"""The operations with which no model is asked."""
RELAYED_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""The fields of relayed bodies that limit each answer."""
GENERATING = ("messages", "prompt")
"""The fields of relayed bodies whose model generates; of others, such as embeddings, no output is expected at first."""
MOST_ANSWERS = 128
"""How many answers a relayed body can ask for with `n`."""
MAX_MODELS = 1_000
"""Of how many models it is known what is usual."""


class ExpectedTokens:
    """Expects of each model about what it has generated before: the limit of a call is far above what most use."""

    def __init__(self) -> None:
        self._usual: OrderedDict[str, float] = OrderedDict()  # the model that was first seen at the beginning

    def of(self, call: Call) -> int:
        """Return the tokens of a call's input and output together; those of a count of tokens are 0."""
        operation = call.operation
        if operation in UNUSED:
            return 0
        if operation == "relay":
            return call.size_bytes // BYTES_PER_TOKEN + self._relayed_output(call)
        output = int(MARGIN * self._usual.get(call.model, FIRST_OUTPUT / MARGIN))
        limit = call.body.get("max_output_tokens")
        if type(limit) is int and 0 <= limit < output:
            output = limit
        return call.size_bytes // BYTES_PER_TOKEN + output

    def _relayed_output(self, call: Call) -> int:
        """Return what is expected of all answers together to a body in another dialect."""
        body = call.body
        asked, usual = body.get("n"), self._usual.get(call.model)
        answers = asked if type(asked) is int and 1 <= asked <= MOST_ANSWERS else 1
        if usual is None:
            output = answers * FIRST_OUTPUT if any(field in body for field in GENERATING) else 0
        else:
            output = int(MARGIN * usual)
        limits = [answers * limit for field in RELAYED_LIMITS if type(limit := body.get(field)) is int and limit >= 0]
        return min([output, *limits])

    def parts_of(self, call: Call) -> tuple[int, int]:
        """Return the tokens of a call's input and of its output."""
        if call.operation in UNUSED:
            return 0, 0
        input_tokens = call.size_bytes // BYTES_PER_TOKEN
        return input_tokens, self.of(call) - input_tokens

    def used(self, call: Call, context: Context, reserved: int) -> int:
        """Return what a call has used: as its record says, estimates included; what was reserved if that says nothing;
        nothing if no backend has worked on it.
        """
        if not context.is_sent and not context.is_answered:
            return 0
        record = context.record
        sent, made = record.input_tokens, record.output_tokens
        if type(sent) is not int or type(made) is not int or not (0 <= sent < LARGEST and 0 <= made < LARGEST):
            return reserved
        if record.estimated is None:
            usual, model = self._usual, call.model
            before = usual.get(model, made)
            usual[model] = before + WEIGHT * (made - before)
            if len(usual) > MAX_MODELS:
                usual.popitem(last=False)
        return sent + made
