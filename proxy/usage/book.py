"""Counts the calls of this process, in rows of an hour each, until they are written to the store."""

import secrets
import time
from collections import Counter
from collections.abc import Callable

from proxy.telemetry.record import RequestRecord
from proxy.telemetry.request_metrics import is_model_call
from proxy.usage.columns import OTHER, Labels, Metadata, add_call, amounts_of
from proxy.usage.spool import Batch, Spool, begun_line, ended_line
from proxy.usage.table import UsageTable
from proxy.wire.call import Call
from proxy.wire.token_estimate import BYTES_PER_TOKEN

HOUR_S = 3600
MAX_PLANS = 10_000
"""For how many combinations of labels the name of their row is remembered."""
MAX_ENDED = 64
"""The most calls that wait to be added up: adding up several at once takes less time for each."""


class UsageBook:
    """The usage of calls that is not in the store yet.

    With a spool each call is written there before it is sent, and when it has ended.
    """

    def __init__(
        self, settings: UsageTable, spool: Spool | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.metadata = settings.metadata
        """The keys of metadata whose values have rows of their own."""
        self._max_rows = settings.max_rows
        self._clock = clock
        self._hour = -1
        self._hour_name = ""
        self._rows: Counter[str] = Counter()  # how many of the hour each team has
        self._names: set[str] = set()  # of all rows of the hour
        self._plans: dict[tuple[object, ...], str] = {}
        self._batch = Batch(secrets.token_hex(8), 1)
        self._spool = spool
        self._numbers = 0
        self._in_flight: dict[int, bytes] = {}
        self._ended: list[tuple[RequestRecord, bool, float]] = []  # with `is_call`, and when it ended
        self.left = [] if spool is None else [*spool.left()]
        """What ended processes in this place have counted."""
        if spool is not None:
            spool.begin(self._batch.source, 1)

    def begin(self, record: RequestRecord, call: Call | None) -> None:
        """Count that a call is sent to a backend; None: a relayed request without fields."""
        record.sent += 1
        if self._spool is None or record.team is None:
            return
        if not record.usage_number:
            self._numbers += 1
            record.usage_number = self._numbers
        name, tokens = self._name_of(record, self._clock()), 0 if call is None else call.size_bytes // BYTES_PER_TOKEN
        line = begun_line(record.usage_number, self._hour_name, name, record.sent, tokens)
        self._in_flight[record.usage_number] = line
        self._spool.append(line)

    def count(self, record: RequestRecord, *, is_call: bool = True) -> None:
        """Count a call that has ended. `is_call`: a caller has made it; else only what it used is counted.

        With a spool that is written now, as the process may be killed; without one calls are added up soon.
        """
        if self._spool is None:
            self._ended.append((record, is_call, self._clock()))
            if len(self._ended) >= MAX_ENDED:
                self.add_up()
        elif record.team is not None and is_model_call(record, record.path):
            name, amounts = self._name_of(record, self._clock()), amounts_of(record, is_call=is_call)
            self._batch.add(self._hour_name, name, amounts)
            self._in_flight.pop(record.usage_number, None)
            self._spool.append(ended_line(record.usage_number, self._hour_name, name, amounts))

    def add_up(self) -> None:
        """Add the calls that have ended to their rows."""
        ended, self._ended = self._ended, []
        for record, is_call, ended_at in ended:
            if record.team is not None and is_model_call(record, record.path):
                name = self._name_of(record, ended_at)
                add_call(self._batch.row(self._hour_name, name), record, is_call=is_call)

    def cut(self) -> Batch | None:
        """Return the counts since the last cut; None if there are none. The previous cut must have been written."""
        self.add_up()
        batch = self._batch
        if not batch.sums:
            return None
        self._batch = Batch(batch.source, batch.number + 1)
        if self._spool is not None:
            self._spool.turn(batch.source, self._batch.number, self._in_flight.values())
        return batch

    def settle(self) -> None:
        """Forget the last cut, which is in the store."""
        if self._spool is not None:
            self._spool.drop()

    def _name_of(self, record: RequestRecord, now: float) -> str:
        """Return the name of the row of a call, in the hour that it is at this time."""
        hour = int(now // HOUR_S)
        if hour != self._hour:
            self._begin_hour(hour)
        key = (
            record.team, record.caller, record.key_id, record.model, record.backend, record.usage_metadata, record.tags,
        )  # fmt: skip
        name = self._plans.get(key)
        if name is None:
            labels = Labels(
                record.team or "", record.caller or "", record.key_id or "", record.model or "", record.backend or "",
                self._metadata_of(record),
            )  # fmt: skip
            name = self._row_for(labels)
            if len(self._plans) < MAX_PLANS:
                self._plans[key] = name
        return name

    def _begin_hour(self, hour: int) -> None:
        self._hour, self._hour_name = hour, hour_name(hour)
        self._rows.clear()
        self._names.clear()
        self._plans.clear()

    def _row_for(self, labels: Labels) -> str:
        """Return the name of a row of the hour: of another one if there are too many, at last without a caller."""
        rest = Labels(labels.team, labels.caller, labels.key, OTHER, labels.target, ())
        for each, limit in ((labels, self._max_rows), (rest, 2 * self._max_rows)):
            name = each.name()
            if name in self._names:
                return name
            free = limit - len(self._names)
            if self._rows[labels.team] < free:
                self._rows[labels.team] += 1
                self._names.add(name)
                return name
        return Labels(labels.team, "", "", OTHER, OTHER).name()

    def _metadata_of(self, record: RequestRecord) -> Metadata:
        """Return the values of the metadata that has rows: a tag of the key, or else what the caller has sent."""
        if not self.metadata:
            return ()
        tags = dict(tag.split("=", 1) for tag in (record.tags or "").split(",") if "=" in tag)
        values = dict(record.usage_metadata) | {name: tags[name] for name in self.metadata if name in tags}
        return tuple((name, values[name]) for name in self.metadata if values.get(name))


def hour_name(hour: int) -> str:
    """Return how an hour is named in keys, in UTC: "2026-11-30T10"."""
    return time.strftime("%Y-%m-%dT%H", time.gmtime(hour * HOUR_S))
