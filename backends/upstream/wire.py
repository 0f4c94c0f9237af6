"""Sends requests to the server of an upstream, with its address, its key and the headers that it may see.

The values that every request needs are attributes here: reading a field of the pydantic model takes ten times as long.
"""

from collections.abc import Awaitable, Mapping

from backends.upstream.body import AnswerLimits, UpstreamAnswer
from backends.upstream.credentials import Credentials
from backends.upstream.http1 import BodySource, Client, RequestHeads, encode_length
from proxy.context import Context
from proxy.wire.call import Call, Operation
from proxy.wire.headers import IDEMPOTENCY_KEY, HeaderNames, scope_idempotency_key

PATHS: Mapping[Operation, str] = {
    "create": "responses", "compact": "responses/compact", "input_tokens": "responses/input_tokens",
}  # fmt: skip


class Wire:
    """The sender of requests to one upstream."""

    __slots__ = ("_client", "_credentials", "_heads", "_names", "_path", "_query", "_targets", "is_plain", "limits")

    def __init__(  # noqa: PLR0913  each independent of the others
        self, client: Client, credentials: Credentials, limits: AnswerLimits, *, path: str, query: str,
        headers: Mapping[str, str], names: HeaderNames, is_plain: bool,
    ) -> None:  # fmt: skip
        """`path` is put before the path of each request, `query` after its query. Every request has `headers`;
        `names` are those of the caller's headers that are forwarded.
        """
        self.is_plain = is_plain
        """Whether every call is sent unchanged and over HTTP."""
        self._client = client
        self._credentials = credentials
        self.limits = limits
        """The limits of answers."""
        self._path = path
        self._query = query
        self._heads = RequestHeads(headers)
        self._names = names
        self._targets = {operation: self._target_of(path, "") for operation, path in PATHS.items()}

    def post(self, call: Call, encoded: bytes, context: Context) -> Awaitable[UpstreamAnswer]:
        """Send a call with its encoded body, as `request` does."""
        operation, query = call.operation, call.query
        target = self._target_of(PATHS[operation], query) if query else self._targets[operation]
        return self._send("POST", target, encoded, self.headers(call.headers, context))

    def headers(self, received: Mapping[str, str], context: Context) -> dict[str, str]:
        """Return the headers of a request: the caller's that are forwarded, and those of the trace."""
        forwarded = self._names.select(received) if received else {}
        if IDEMPOTENCY_KEY in forwarded:
            forwarded = scope_idempotency_key(forwarded, context.caller.team)
        traced = context.trace.propagation_headers()
        return {**forwarded, **traced} if traced else forwarded

    def request(
        self, method: str, path: str, body: bytes | BodySource, headers: Mapping[str, str], query: str = ""
    ) -> Awaitable[UpstreamAnswer]:
        """Send a request and return the answer once its head has arrived.

        A body is JSON unless a header says otherwise. Raises BackendError, and what a streamed body raises.
        """
        return self._send(method, self._target_of(path, query), body, headers)

    def _target_of(self, path: str, query: str) -> str:
        """Return the target of a request: its path below that of the API, and its query with the configured one."""
        query = query.partition("#")[0]  # a fragment is not part of a request
        both = f"{query}&{self._query}" if query and self._query else query or self._query
        return f"{self._path}/{path}?{both}" if both else f"{self._path}/{path}"

    def _send(
        self, method: str, target: str, body: bytes | BodySource, headers: Mapping[str, str]
    ) -> Awaitable[UpstreamAnswer]:  # fmt: skip
        if not isinstance(body, bytes):
            framing = body.framing
        else:
            framing = encode_length(len(body)) if body or method == "POST" else b""
        credentials = self._credentials
        if credentials.can_expire:
            return self._request_with_token(method, target, body, headers, framing)
        return self._client.request(self._heads.encode(method, target, headers, credentials.headers, framing), body)

    async def _request_with_token(
        self, method: str, target: str, body: bytes | BodySource, headers: Mapping[str, str], framing: bytes
    ) -> UpstreamAnswer:
        """Send a request with a key that expires; if the upstream refuses it, once more with a new one."""
        client, credentials, heads = self._client, self._credentials, self._heads
        own = credentials.current
        own = await credentials.read() if own is None else own
        answer = await client.request(heads.encode(method, target, headers, own, framing), body)
        if answer.status == 401 and isinstance(body, bytes) and (new := await credentials.renew(own)):
            answer.close()  # nothing was done
            return await client.request(heads.encode(method, target, headers, new, framing), body)
        return answer
