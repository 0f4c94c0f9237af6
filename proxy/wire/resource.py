"""A request for an existing resource: a response, a conversation, or its items. It names no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["responses", "conversations"]


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """One such request. A POST to /v1/conversations has no id yet; all others name an id that an owner is known for."""

    method: str  # GET, POST or DELETE
    kind: Kind
    id: str | None = None
    rest: tuple[str, ...] = ()  # what follows the id in the path: (), ("cancel",), ("input_items",), ("items", "msg_1")
    query: str = ""  # as received, without the question mark
    body: Mapping[str, Any] | None = None  # the JSON object of a POST, empty if it was sent without one
    headers: Mapping[str, str] = field(default_factory=dict)  # those that a backend may see, names in lower case

    @property
    def path(self) -> str:
        """The path behind the API's base address, such as responses/resp_1/cancel."""
        return "/".join([self.kind, *([] if self.id is None else [self.id]), *self.rest])

    @property
    def deleted(self) -> Mapping[str, Any]:
        """The object with which a deletion is answered."""
        kind = "response" if self.kind == "responses" else "conversation.deleted"
        return {"id": self.id, "object": kind, "deleted": True}
