"""The begin and the end of a reply: its first and last event, or one body that stands for all events."""

from collections.abc import Mapping
from typing import Any

from proxy.wire.body_events import terminal_of_body
from proxy.wire.event import Event


class ReplyBounds:
    """The first event of a reply, and its last one or the response that came as one body. `Transcript` sets what
    it begins with: a second initializer would cost each request as much as all that it sets.
    """

    __slots__ = ("_body_bytes", "_terminal", "_whole", "created", "error", "is_changed", "is_started")
    is_started: bool
    """Whether a batch was passed on: before that an error is still an HTTP status."""
    is_changed: bool
    """Whether a reply check changed an event: the cache keeps only what a backend said."""
    created: Event | None
    error: Event | None
    """The `error` event that was passed on."""
    _terminal: Event | None
    _whole: Mapping[str, Any] | None
    _body_bytes: int

    def add_whole(self, response: Mapping[str, Any], size_bytes: int) -> None:
        """Record a response that came as one body of this size, in place of the events that stand for it."""
        self._whole, self.is_started, self._body_bytes = response, True, size_bytes

    @property
    def is_ended(self) -> bool:
        """Whether the last event, or a whole response, was recorded."""
        return self._terminal is not None or self._whole is not None

    @property
    def terminal(self) -> Event | None:
        """The last event; that of a response that came as one body is made when it is read."""
        if self._terminal is None and self._whole is not None:
            self._terminal = terminal_of_body(self._whole)
        return self._terminal

    @property
    def final(self) -> Mapping[str, Any] | None:
        """The response object in the last event, or that came as one body; None before the end."""
        return self._whole if self._terminal is None else self._terminal.response
