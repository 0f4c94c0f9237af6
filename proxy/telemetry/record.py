"""What is recorded of one request: the fields of its log line and the attributes of its spans.

Prompts, outputs and keys are never recorded. Texts that come from outside are bounded in length.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from proxy.wire.transcript import Transcript

LONGEST_CHARS = 256
"""How much of a text is recorded, in characters."""


@dataclass(slots=True)
class RequestRecord:
    """The facts of one request, each set by the step that knows it. None: unknown or not applicable."""

    method: str | None = None
    path: str | None = None
    caller: str | None = None
    team: str | None = None
    model: str | None = None
    stream: bool | None = None
    status: int | None = None
    code: str | None = None
    policy: str | None = None
    outcome: str | None = None
    """What the policy named in `policy` did: refused, reported or stopped."""
    route: str | None = None
    backend: str | None = None
    provider: str | None = None
    cache: str | None = None
    max_output_tokens: Any = None
    """The caller's own value, of whatever type it is."""
    first_event_s: float | None = None
    response_id: Any = None
    response_model: Any = None
    finish_reason: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    cached_tokens: Any = None

    def read(self, transcript: Transcript) -> None:
        """Take ids and token counts from the final response, if one was seen. Its values are the upstream's own."""
        if transcript.terminal is None:
            return
        response, usage = transcript.terminal.response, transcript.usage
        details = usage.get("input_tokens_details")
        self.response_id = response.get("id")
        self.response_model = response.get("model")
        self.finish_reason = response.get("status")
        self.input_tokens = usage.get("input_tokens")
        self.output_tokens = usage.get("output_tokens")
        self.cached_tokens = details.get("cached_tokens") if isinstance(details, Mapping) else None

    def read_relayed(self, answer: Mapping[str, Any]) -> None:
        """Take ids and token counts from the answer of a relayed path, in the words of Responses or Chat Completions.

        The last event of a stream has them in the same fields, or in its `response`.
        """
        inner = answer.get("response")
        answer = inner if isinstance(inner, Mapping) else answer
        self.response_id, self.response_model = answer.get("id"), answer.get("model")
        usage = answer.get("usage")
        if not isinstance(usage, Mapping):
            return
        details = usage.get("input_tokens_details", usage.get("prompt_tokens_details"))
        self.input_tokens = usage.get("input_tokens", usage.get("prompt_tokens"))
        self.output_tokens = usage.get("output_tokens", usage.get("completion_tokens"))
        self.cached_tokens = details.get("cached_tokens") if isinstance(details, Mapping) else None

    def known(self) -> dict[str, str | int | float | bool]:
        """Return the fields that are known, in order. A value that is no scalar is recorded by the name of its type."""
        known: dict[str, str | int | float | bool] = {}
        for name in _NAMES:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, str):
                known[name] = value[:LONGEST_CHARS] if len(value) > LONGEST_CHARS else value
            else:
                known[name] = value if isinstance(value, int | float) else f"<{type(value).__name__}>"
        return known


_NAMES = tuple(field.name for field in fields(RequestRecord))
