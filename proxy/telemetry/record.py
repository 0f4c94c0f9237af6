"""What is recorded of one request: the fields of its log line and the attributes of its spans.

Prompts, outputs and keys are never recorded. Texts that come from outside are bounded in length, and control characters
in them are escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from proxy.wire.key_patterns import has_key, redact_name
from proxy.wire.loggable import printable
from proxy.wire.stream_errors import error_in
from proxy.wire.transcript import Transcript

LONGEST_CHARS = 256
"""How much of a text is recorded, in characters: the longest model and id that a call may name are recorded whole."""
USAGE = ("input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details")
CHAT_USAGE = ("prompt_tokens", "prompt_tokens_details", "completion_tokens", "completion_tokens_details")
UNFINISHED = ("failed", "incomplete")
NUMBERS = frozenset({int, float, bool})
SCALARS = NUMBERS | {str}
LEAST, GREATEST = -(2**63), 2**64 - 1
"""The bounds of an integer in JSON that other programs can read."""
FROM_CACHE = frozenset({"hit", "stale", "collapsed"})
"""The outcomes of the cache with which no backend was called for this request."""


@dataclass(slots=True)
class RequestRecord:
    """The facts of one request, each set by the step that knows it. None: unknown or not applicable."""

    method: str | None = None
    path: str | None = None
    trace_id: str | None = None
    client_address: str | None = None
    caller: str | None = None
    team: str | None = None
    key_id: str | None = None
    """The id of its key, if that was issued."""
    issuer: str | None = None
    """The name of the issuer of its token."""
    tags: str | None = None
    """What its key was issued for, or what its token says: "project=x,stage=test"."""
    key_fingerprint: str | None = None
    """The first 12 hex digits of the SHA-256 of its key, or of the issuer and subject of its token."""
    safety_identifier: Any = None
    metadata: dict[str, str] | None = None
    """The values of the keys in `log_metadata`, each a field of the log line: "metadata.project"."""
    model: str | None = None
    stream: bool | None = None
    status: int | None = None
    code: str | None = None
    upstream_code: Any = None
    """The code of the upstream's own error."""
    policy: str | None = None
    outcome: str | None = None
    """What the policy named in `policy` did: refused, reported or stopped."""
    route: str | None = None
    backend: str | None = None
    provider: str | None = None
    attempts: int | None = None
    """How often the call was sent to targets, if more than once."""
    hedged: str | None = None
    """The backend whose attempt was cancelled because another one was faster; it may have to be paid."""
    repairs: str | None = None
    """What was mended in the backend's stream, and how often: "output=1 sequence_number=24"."""
    cache: str | None = None
    """What the cache did: hit, stale, miss, refresh, collapsed or bypass."""
    cache_detail: str | None = None
    """Why it did that, where the outcome does not say it."""
    cache_lookup_s: float | None = None
    """How long the cache was looked up."""
    cache_bytes: int | None = None
    """How long the answer is that the cache gave."""
    queue_s: float | None = None
    """How long the call waited for a place at its backend, if it did."""
    inference_s: float | None = None
    """How long backends worked on it: from the first attempt to the end of the last one."""
    max_output_tokens: Any = None
    """The caller's own value, of whatever type it is."""
    first_event_s: float | None = None
    response_id: Any = None
    response_model: Any = None
    finish_reason: Any = None
    incomplete_reason: Any = None
    input_tokens: Any = None
    """Tokens that backends used for this request. Those of an answer that cost nothing are in `saved_input_tokens`."""
    output_tokens: Any = None
    cached_tokens: Any = None
    cache_write_tokens: Any = None
    reasoning_tokens: Any = None
    saved_input_tokens: Any = None
    saved_output_tokens: Any = None
    estimated: bool | None = None
    """Whether token counts are estimates, because a backend worked on the call and sent none."""
    cost_usd: float | None = None
    """What they cost, by the prices that the gateway knows."""
    saved_usd: float | None = None
    unpriced: bool | None = None
    """Whether the model has no price that the gateway knows."""
    sent: int = 0
    """How often it was sent to a backend. This and what follows is counted, and not logged."""
    usage_metadata: tuple[tuple[str, str], ...] = ()
    """The values of the keys in `[usage] metadata`."""
    usage_number: int = 0
    """Its number among the calls that were sent in this process, if those are written down before they are."""

    def read(self, transcript: Transcript, *, is_saved: bool = False) -> None:
        """Take ids and token counts from the final response, if one was seen. Its values are the upstream's own.

        `is_saved`: no backend was called for it.
        """
        response = transcript.final
        if response is None:
            return
        self.response_id = response.get("id")
        self.response_model = response.get("model")
        self.finish_reason = status = response.get("status")
        if status in UNFINISHED:
            self._read_reason(response, transcript)
        usage = response.get("usage")
        if not isinstance(usage, dict):
            return
        if is_saved:
            self.saved_input_tokens, self.saved_output_tokens = usage.get("input_tokens"), usage.get("output_tokens")
        else:
            self._read_usage(usage, USAGE)

    def _read_reason(self, response: Mapping[str, Any], transcript: Transcript) -> None:
        """Take the reason why a response is incomplete, and the error of one that failed."""
        details, failed = response.get("incomplete_details"), response.get("error")
        self.incomplete_reason = details.get("reason") if isinstance(details, dict) else None
        if self.code is None:  # the gateway has not ended it
            error = error_in(transcript.error) if transcript.error is not None else None
            own = failed.get("code") if isinstance(failed, dict) else None
            self.upstream_code = own if error is None else error.code

    def note_metadata(self, body: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Take the values of some keys of the caller's metadata."""
        sent = body.get("metadata") if keys else None
        if isinstance(sent, dict):
            found = {key: sent[key] for key in keys if isinstance(sent.get(key), str)}
            self.metadata = {key: printable(text, LONGEST_CHARS) for key, text in found.items()} or None

    def note_usage_metadata(self, body: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Take the values of the keys of metadata by which usage is grouped."""
        sent = body.get("metadata")
        if isinstance(sent, dict):
            found = ((key, sent[key]) for key in keys if isinstance(sent.get(key), str))
            self.usage_metadata = tuple((key, printable(text, LONGEST_CHARS)) for key, text in found)

    def note_model(self, model: object) -> None:
        """Take the name of the model, which callers, metrics and counts of usage then see: it must have no key."""
        self.model = (redact_name(model) or None) if isinstance(model, str) else None

    def note_call(self, body: Mapping[str, Any]) -> None:
        """Take fields of a call as the policies allow it: one may have replaced an alias."""
        self.note_model(body.get("model"))
        self.max_output_tokens, self.safety_identifier = body.get("max_output_tokens"), body.get("safety_identifier")

    def read_relayed(self, answer: dict[str, Any]) -> None:
        """Take ids and token counts from the answer of a relayed path, in the words of Responses or Chat Completions.

        The last event of a stream has them in the same fields, or in its `response`.
        """
        inner = answer.get("response")
        answer = inner if isinstance(inner, dict) else answer
        self.response_id, self.response_model = answer.get("id"), answer.get("model")
        usage = answer.get("usage")
        if isinstance(usage, dict):
            self._read_usage(usage, CHAT_USAGE if "prompt_tokens" in usage else USAGE)

    def _read_usage(self, usage: Mapping[str, Any], names: tuple[str, str, str, str]) -> None:
        """Take token counts. `names` are those of input and output, each followed by that of its details."""
        read, read_details, written, written_details = names
        self.input_tokens, self.output_tokens = usage.get(read), usage.get(written)
        details = usage.get(read_details)
        if isinstance(details, dict):
            self.cached_tokens = details.get("cached_tokens")
            self.cache_write_tokens = details.get("cache_write_tokens")
        details = usage.get(written_details)
        if isinstance(details, dict):
            self.reasoning_tokens = details.get("reasoning_tokens")

    def is_small(self) -> bool:
        """Whether it has no long text, and nothing but texts and numbers: what others have sent may be of any size."""
        return all(
            value is None or type(value) in NUMBERS or (type(value) is str and len(value) <= LONGEST_CHARS)
            for value in _foreign_of(self)
        )

    def copy(self) -> "RequestRecord":
        """Return a record with the same values."""
        return RequestRecord(*_all_of(self))

    def known(self) -> dict[str, str | int | float | bool]:
        """Return the fields that are known, in order. A value that is no scalar is recorded by the name of its type."""
        known: dict[str, Any] = {}
        return known if add_known(known, RECORDED, _values_of(self)) else fit_for_log(known)


def add_known(fields: dict[str, Any], names: Sequence[str], values: Sequence[Any]) -> bool:
    """Add the values that are known. Return whether all are scalars, the texts short, printable and without keys."""
    texts, fits = [], True
    for name, value in zip(names, values, strict=True):
        if value is None:
            continue
        fields[name] = value
        kind = type(value)
        if kind is str and len(value) <= LONGEST_CHARS:
            texts.append(value)
        elif kind not in NUMBERS or not LEAST <= value <= GREATEST:
            fits = False
    joined = " ".join(texts)
    return fits and joined.isprintable() and not has_key(joined)


def fit_for_log(known: dict[str, Any]) -> dict[str, Any]:
    """Return fields with texts that are short and printable, and scalars in place of everything else."""
    for name, value in [*known.items()]:
        kind = type(value)
        if kind is str:
            known[name] = printable(value, LONGEST_CHARS)
        elif name != "metadata" and (kind not in SCALARS or (kind is int and not LEAST <= value <= GREATEST)):
            known[name] = f"<{kind.__name__}>"
    return _with_metadata(known) if "metadata" in known else known


def _with_metadata(known: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with each pair of the metadata as one, in its place."""
    flat: dict[str, Any] = {}
    for name, value in known.items():
        pairs = value.items() if name == "metadata" else ()
        flat |= {f"metadata.{key}": printable(text, LONGEST_CHARS) for key, text in pairs}
        flat |= {} if name == "metadata" else {name: value}
    return flat


COUNTED = frozenset({"sent", "usage_metadata", "usage_number"})
"""The fields that are for the count of usage only."""
RECORDED = tuple(field.name for field in fields(RequestRecord) if field.name not in COUNTED)
"""The fields of the log line, in order."""
_values_of = attrgetter(*RECORDED)
FOREIGN = ("path", "tags", "model", *(field.name for field in fields(RequestRecord) if field.type is Any))
"""The fields whose values are as long as callers, issuers and upstreams have made them."""
_foreign_of = attrgetter(*FOREIGN)
_all_of = attrgetter(*(field.name for field in fields(RequestRecord)))
