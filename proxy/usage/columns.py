"""The numbers that are kept of calls, and how a call is put into one row of them.

column                    what it counts
calls                     calls that have ended, however they did; each is in at most one of the next four
failed                    answered with an error of a backend or of the gateway
refused                   refused before a backend was asked: a policy, a budget, a rate, an invalid request
interrupted               not answered to the end: the client left, a policy stopped the reply, the gateway ended
cached                    answered by the cache, or by the call of another caller that was in flight
sent                      how often a backend may have worked on a call: retries, hedges, refreshed cache entries too
input_tokens              tokens that backends have stated; of these
cached_input_tokens       ... were read from the cache of the provider
cache_write_tokens        ... were written to it
output_tokens             tokens that backends have stated; of these
reasoning_tokens          ... were reasoning
estimated_input_tokens    tokens of calls for which a backend stated none, such as those that a client has left; not in
estimated_output_tokens   ... the columns above
saved_input_tokens        tokens of answers that the cache has given
saved_output_tokens
cost                      in billionths of a US dollar, by the prices that the gateway knows
saved_cost                what cached answers would have cost
unpriced                  calls whose price is not known
"""

from typing import Any, NamedTuple

import orjson

from proxy.telemetry.record import FROM_CACHE, RequestRecord

COLUMNS = (
    "calls", "failed", "refused", "interrupted", "cached", "sent", "input_tokens", "cached_input_tokens",
    "cache_write_tokens", "output_tokens", "reasoning_tokens", "estimated_input_tokens", "estimated_output_tokens",
    "saved_input_tokens", "saved_output_tokens", "cost", "saved_cost", "unpriced",
)  # fmt: skip
"""In the order in which they are kept: a new one comes at the end."""
(
    CALLS, FAILED, REFUSED, INTERRUPTED, CACHED, SENT, INPUT, CACHED_INPUT, CACHE_WRITE, OUTPUT, REASONING,
    ESTIMATED_INPUT, ESTIMATED_OUTPUT, SAVED_INPUT, SAVED_OUTPUT, COST, SAVED_COST, UNPRICED,
) = range(len(COLUMNS))  # fmt: skip
DOLLAR = 1_000_000_000
"""How many steps a dollar has."""
LARGEST = 2**40
"""A larger number of tokens is not believed."""
SHUT_DOWN = "server_shutdown"
OTHER = "other"
"""The model and the metadata of calls beyond the limit of rows."""
LONGEST_CHARS = 128
"""How much of a text is kept, in characters."""

Metadata = tuple[tuple[str, str], ...]


class Labels(NamedTuple):
    """Whose row it is. A text that does not apply is empty."""

    team: str
    caller: str = ""
    key: str = ""
    """The id of an issued key."""
    model: str = ""
    target: str = ""
    """The name of the backend."""
    metadata: Metadata = ()

    def name(self) -> str:
        """Return the name of the row."""
        *texts, metadata = self
        return orjson.dumps([*(text[:LONGEST_CHARS] for text in texts), dict(metadata)]).decode()

    @staticmethod
    def of(name: str) -> "Labels":
        """Return the labels of a row of this name. Raises ValueError."""
        team, caller, key, model, target, metadata = orjson.loads(name)
        return Labels(team, caller, key, model, target, tuple(metadata.items()))


def amounts_of(record: RequestRecord, *, is_call: bool = True) -> list[int]:
    """Return what a call adds to its row, once its record is complete."""
    amounts = [0] * len(COLUMNS)
    add_call(amounts, record, is_call=is_call)
    return amounts


def add_call(row: list[int], record: RequestRecord, *, is_call: bool = True) -> None:
    """Add a call to its row, once its record is complete. `is_call`: a caller has made it."""
    if is_call:
        row[CALLS] += 1
        end = _end_of(record)
        if end is not None:
            row[end] += 1
        elif record.cache in FROM_CACHE and not record.sent:
            row[CACHED] += 1
    row[SENT] += record.sent
    if record.input_tokens is not None or record.output_tokens is not None:
        _add_tokens(row, record)
    if record.saved_input_tokens is not None:
        row[SAVED_INPUT] += _count(record.saved_input_tokens)
        row[SAVED_OUTPUT] += _count(record.saved_output_tokens)
    if record.cost_usd:
        row[COST] += round(record.cost_usd * DOLLAR)
    if record.saved_usd:
        row[SAVED_COST] += round(record.saved_usd * DOLLAR)
    if record.unpriced:
        row[UNPRICED] += 1


def _add_tokens(row: list[int], record: RequestRecord) -> None:
    used, generated = (ESTIMATED_INPUT, ESTIMATED_OUTPUT) if record.estimated else (INPUT, OUTPUT)
    row[used] += _count(record.input_tokens)
    row[generated] += _count(record.output_tokens)
    if record.cached_tokens:
        row[CACHED_INPUT] += _count(record.cached_tokens)
    if record.cache_write_tokens:
        row[CACHE_WRITE] += _count(record.cache_write_tokens)
    if record.reasoning_tokens:
        row[REASONING] += _count(record.reasoning_tokens)


def _end_of(record: RequestRecord) -> int | None:
    """Return the column of an end that is no answer."""
    status, code, outcome, reason = record.status, record.code, record.outcome, record.finish_reason
    if status == 499 or outcome == "stopped" or reason == "cancelled" or code == SHUT_DOWN:
        return INTERRUPTED
    is_error = status is not None and status >= 400
    if code is None and reason != "failed" and not is_error:
        return None
    if outcome == "refused" and is_error:
        return REFUSED
    return FAILED if record.sent or not is_error or (status or 0) >= 500 else REFUSED


def _count(value: Any) -> int:
    """Return a number of tokens; 0 for anything else that an upstream may have sent."""
    return value if type(value) is int and 0 < value < LARGEST else 0
