"""A request of a relayed path and its answer: the forwarded bytes, and the parts that the gateway reads."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from proxy.wire.call import Call


@dataclass(frozen=True, slots=True)
class RelayRequest:
    """A request that an upstream receives as it was sent, with a JSON body, a stream of other bytes, or neither."""

    method: str
    path: str  # behind the API's base address, such as files/file_1/content
    query: str = ""  # as received, without the question mark
    headers: Mapping[str, str] = field(default_factory=dict)  # those that some backend may see, names in lower case
    types: Mapping[str, str] = field(default_factory=dict)  # Content-Type of the body, and Accept
    call: Call | None = None  # the JSON object in the body
    body: bytes = b""  # the encoding of that object
    stream: AsyncIterator[bytes] | None = None
    size: int | None = None  # of the stream in bytes, if the caller says it


@dataclass(frozen=True, slots=True)
class RelayReply:
    """An answer as an upstream sent it: a whole body, or chunks of one. The headers have its content type."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None = None
    chunks: AsyncIterator[bytes] | None = None

    @property
    def content_type(self) -> str:
        """Return the media type of the body, in lower case and without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
