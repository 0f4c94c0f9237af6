"""A call: a request to a model, and the JSON object that the policies check and a backend receives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from proxy.wire.body import parse_object
from proxy.wire.errors import RequestError
from proxy.wire.large_json import dumps
from proxy.wire.refusals import invalid_type, wrong_type
from proxy.wire.resource import ResourceRequest

Operation = Literal[
    "create", "compact", "input_tokens", "conversation", "items", "access", "relay", "bodiless", "form_field"
]
"""What a call asks for. The first three are requests to a model. "relay" is the JSON body of a relayed request,
"bodiless" a relayed request without one, and "form_field" a field of its form. For the others see `resource_call`."""
MODEL_OPERATIONS: frozenset[Operation] = frozenset({"create", "compact", "input_tokens"})
INPUT_OPERATIONS: frozenset[Operation] = MODEL_OPERATIONS | {"conversation", "items"}
"""The operations with input items, in `input` or in `items`."""

RELAYED_FIELDS: frozenset[Operation] = frozenset({"relay", "form_field"})
"""The operations with fields of a relayed request."""

MAX_MODEL_CHARS = 256
PLAIN_FIELDS = frozenset({
    "background", "max_output_tokens", "max_tool_calls", "metadata", "model", "safety_identifier", "service_tier",
    "store", "stream", "user",
})  # fmt: skip
"""Fields that offer no tools and name nothing stored: their values are plain, or names that the caller chose."""
NAMES_OF_CALLERS = frozenset({"metadata"})
PLAIN = frozenset({str, int, float, bool, type(None)})
UNAFFECTED_BY = "unaffected_by"
NO_FIELDS: frozenset[str] = frozenset()
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


def unaffected_by(fields: frozenset[str]) -> Callable[[Function], Function]:
    """Declare that a fact does not depend on plain values of these fields."""

    def declare(function: Function) -> Function:
        vars(function)[UNAFFECTED_BY] = fields
        return function

    return declare


class FactSource(NamedTuple):
    """The facts of the kept call from which another one was derived, and the fields that differ."""

    facts: dict[Callable[["Call"], Any], Any]
    changed: frozenset[str]
    source: "FactSource | None"


@dataclass(slots=True)  # not frozen: every call makes one, and that would triple the cost
class Call:
    """One request to a model. A change makes a new Call; the body of an existing one is never modified."""

    body: Mapping[str, Any]  # the whole JSON object, unknown fields included
    headers: Mapping[str, str] = field(default_factory=dict)  # those that some backend may see, names in lower case
    query: str = ""  # as received, without the question mark
    operation: Operation = "create"
    received_bytes: int = field(default=0, compare=False)  # how large the body was when it was received
    model: str = field(init=False, repr=False, compare=False)
    """The requested model; empty if the request names none."""
    is_stream: bool = field(init=False, repr=False, compare=False)
    """Whether the caller wants events. Only a response can be streamed."""
    _encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)  # None until it is encoded
    _facts: dict[Callable[["Call"], Any], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _source: FactSource | None = field(default=None, init=False, repr=False, compare=False)
    _is_remembered: bool = field(default=False, init=False, repr=False, compare=False)
    memo: dict[Any, Any] | None = field(default=None, init=False, repr=False, compare=False)
    """Results of steps that depend on this call, headers included, each under a key of the step's own. A step compares
    whatever else its result depends on. None for a call that is not remembered: nothing is kept for it."""

    def __post_init__(self) -> None:
        self.model = self.body.get("model") or ""
        self.is_stream = self.operation == "create" and self.body.get("stream") is True

    def with_fields(self, **fields: Any) -> "Call":
        """Return the call with top-level fields of the body set; a field keeps its place among the others."""
        call = Call({**self.body, **fields}, self.headers, self.query, self.operation, self.received_bytes)
        if self._is_remembered:
            call._share_facts(self.body, FactSource(self._facts, frozenset(fields), self._source))
        return call

    def without_fields(self, *names: str) -> "Call":
        body = {name: value for name, value in self.body.items() if name not in names}
        call = Call(body, self.headers, self.query, self.operation, self.received_bytes)
        if self._is_remembered:
            call._share_facts(self.body, FactSource(self._facts, frozenset(names), self._source))
        return call

    def remember(self) -> None:
        """Share facts with the calls that are derived from this one, where they still hold, and open its memo.

        Called for a call that is kept because its body may be received again.
        """
        self._is_remembered = True
        self.memo = {}

    def _share_facts(self, before: Mapping[str, Any], source: FactSource) -> None:
        """Share the facts of the call from which this one was derived; `before` is that call's body.

        Only if the changed values are plain: an object in any field may hold tools, or an id.
        """
        self._is_remembered, bodies = True, (before, self.body)
        names = source.changed - NAMES_OF_CALLERS
        if all(type(body.get(name)) in PLAIN for name in names for body in bodies):
            self._source = source

    def with_headers(self, headers: Mapping[str, str]) -> "Call":
        """Return the call with other headers; it has the same body, encoding and facts."""
        call = Call(self.body, headers, self.query, self.operation, self.received_bytes)
        call._encoded, call._facts, call._source = self._encoded, self._facts, self._source
        call._is_remembered = self._is_remembered
        return call

    def fact(self, function: Callable[["Call"], T]) -> T:
        """Return the result of a function that reads nothing but the body and its encoding; it is called once.

        The result must not be modified. Calls with the same body share it, and, if this call is kept, those that
        differ only in fields that do not affect the fact. Raises what the function raises.
        """
        facts, source = self._facts, self._source
        if source is not None:
            unaffected: frozenset[str] = getattr(function, UNAFFECTED_BY, NO_FIELDS)
            while source is not None and source.changed <= unaffected:
                facts, source = source.facts, source.source
        if function in facts:
            known: T = facts[function]
            return known
        found = facts[function] = function(self)
        return found

    def with_encoded(self, encoded: bytes) -> "Call":
        """Return the call, whose body has this encoding."""
        self._encoded = encoded
        return self

    @property
    def encoded(self) -> bytes:
        """The body as a backend receives it, encoded once: the object that was checked, not the bytes received."""
        encoded = self._encoded
        return self.encode() if encoded is None else encoded

    @property
    def is_encoded(self) -> bool:
        """Whether `encoded` was made already."""
        return self._encoded is not None

    @property
    def size_bytes(self) -> int:
        """The length of the encoding; before that the length of the body as received."""
        encoded = self._encoded
        return len(encoded) if encoded is not None else self.received_bytes or len(self.encode())

    def encode(self) -> bytes:
        """Encode the body now."""
        self._encoded = dumps(self.body, self.received_bytes)
        return self._encoded


def parse_call(
    raw: bytes,
    *,
    headers: Mapping[str, str] | None = None,
    query: str = "",
    max_values: int = 1_000_000,
    operation: Operation = "create",
    needs_model: bool = True,
) -> Call:
    """Parse the body of a request to a model. Raises RequestError for what `parse_object` refuses, for a model or an
    id of another type than the protocol's, and for a missing model if it is needed.
    """
    body, encoded = parse_object(raw, query=query, max_values=max_values)
    call = call_of_body(
        body, headers or {}, query, operation=operation, received_bytes=len(raw), needs_model=needs_model
    )
    return call.with_encoded(encoded)


def call_of_body(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    query: str,
    *,
    received_bytes: int,
    operation: Operation = "create",
    needs_model: bool = True,
) -> Call:
    """Return the call with this body. Raises RequestError for fields that `parse_call` refuses."""
    model, stream = body.get("model"), body.get("stream")
    if needs_model or model is not None:
        _check_model(model)
    if "previous_response_id" in body or "conversation" in body:
        _check_references(body)
    if stream is not None and stream is not True and stream is not False:
        raise invalid_type("stream", "a boolean", stream)
    return Call(body, headers, query, operation, received_bytes)


def _check_model(model: object) -> None:
    if model is None:
        raise RequestError("Missing required parameter: 'model'.", code="missing_required_parameter", param="model")
    if not isinstance(model, str) or not model:
        raise invalid_type("model", "a non-empty string", model)
    if len(model) > MAX_MODEL_CHARS:
        message = f"model has {len(model)} characters; the limit is {MAX_MODEL_CHARS}."
        raise RequestError(message, code="invalid_value", param="model")


def _check_references(body: Mapping[str, Any]) -> None:
    """Raises RequestError for ids in a form that the protocol does not have: no owner could be found for them.

    It has only one of both fields in a call: otherwise an upstream that reads one could continue a chain with the
    budget of the other.
    """
    previous, conversation = body.get("previous_response_id"), body.get("conversation")
    if previous is not None and not isinstance(previous, str):
        raise invalid_type("previous_response_id", "a string", previous)
    if not isinstance(conversation, str | dict | None):
        raise invalid_type("conversation", "a string or an object", conversation)
    if isinstance(conversation, dict) and not isinstance(named := conversation.get("id"), str | None):
        message = wrong_type("conversation.id", "a string", named)
        raise RequestError(message, code="invalid_type", param="conversation")
    if previous is not None and conversation is not None:
        message = (
            "Mutually exclusive parameters: Ensure you are only providing one of: 'previous_response_id' or "
            "'conversation'."
        )
        raise RequestError(message, code="mutually_exclusive_parameters", param="previous_response_id")


def resource_call(request: ResourceRequest, received_bytes: int) -> Call:
    """Return a request for a resource as a call without a model, so that policies can check its fields.

    `received_bytes` is how large its body was, or more.

    Its operation is "conversation" where a conversation is created or updated, "items" where items are added to one,
    and "access" for all others, which have no fields but those of their query.
    """
    operation: Operation = "access"
    if request.method == "POST" and request.kind == "conversations":
        operation = "items" if request.rest else "conversation"
    return Call(request.body or {}, request.headers, request.query, operation, received_bytes)
