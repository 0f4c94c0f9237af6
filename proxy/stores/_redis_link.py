"""A connection to Redis that all calls share: a command is one write, and one wake-up when its answers are there.

The client of redis-py takes some 300 us of CPU for one command, whatever it does: it takes a connection out of its
pool, looks for late answers, and reads through a stream. Owners are written with every answer, and cached ones are read
with every call, so this connection does nothing but write and read. What is sent in one turn of the event loop leaves
together: each write wakes the server, which costs both sides more than the command. One timer serves all that wait. The
connection is opened by redis-py, with its TLS, names and passwords.

If changes are watched, it speaks RESP3 with tracking: Redis names each key that was read on it and that another
connection has changed since, in the order in which things happened, so that no late answer can follow the news of its
change. A server without tracking only answers.

Source: https://redis.io/docs/latest/develop/reference/client-side-caching/
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from proxy.stores._redis_commands import encode_command
from proxy.stores._redis_parser import END, LARGE_BYTES, ErrorAnswer, Push, UnfinishedAnswer, ValuePieces, parse_answer

Answers = asyncio.Future[Sequence[Any]]
Changed = Callable[[str | None], None]
Fault = Callable[[Exception], Exception]
SHORT, SHORT_BYTES = {b"+OK\r\n": b"OK", b"$-1\r\n": None}, 5
"""What almost all commands are answered: it was done, or there is nothing."""
SHORT_ANSWERS: Mapping[bytes, Sequence[Any]] = {
    b"".join(several): tuple(map(SHORT.get, several))
    for number in range(1, 5)
    for several in product(SHORT, repeat=number)
}
"""What almost all senders get, who send up to four commands together: it is read in one step."""
GRACE_S = 0.002
"""The additional time for answers that may have arrived while the event loop was busy, in seconds."""


Asked = tuple[int, list[Any], Answers, float]
"""Commands that were sent together: how many, their answers so far, the future that gets them, and its end."""


class RedisLink(asyncio.Protocol):
    """Sends commands, and passes each answer to its sender, in their order. Nothing is sent twice."""

    def __init__(
        self, transport: asyncio.Transport, opener: object, timeout_s: float, fault: Fault, changed: Changed
    ) -> None:
        """`opener` is what has opened the connection and would close it if it were dropped.

        `fault` returns what a command raises that fails with an error. `changed` gets the keys that have changed since
        they were read; None: any may have.
        """
        self._transport = transport
        self._opener = opener
        self._timeout_s = timeout_s
        self._fault = fault
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Asked] = deque()
        self._unsent: list[bytes] = []
        self._ends_at = 0.0  # until when the commands of this turn are waited for
        self._received = b""
        self._pieces: list[bytes] = []
        self._missing_bytes = 0
        self._value_at: int | None = None  # where the value begins whose end has not come
        self._heard_at = 0.0  # when a part of a large answer came
        self._timer: asyncio.TimerHandle | None = None
        self.closed = asyncio.Event()
        self.is_open = True
        """Whether commands can be sent."""
        transport.set_protocol(self)

    def ask(self, commands: bytes, number: int) -> Answers:
        """Send so many encoded commands, and return their answers.

        The future fails with `fault` of the first ErrorAnswer, of a ConnectionError if the link is closed, and of a
        TimeoutError.
        """
        loop, unsent = self._loop, self._unsent
        if not unsent:
            self._ends_at = loop.time() + self._timeout_s
            loop.call_soon(self._send)  # after what else can run now, and asks too
            if self._timer is None:
                self._timer = loop.call_at(self._ends_at, self._check_time)
        unsent.append(commands)
        answers: Answers = loop.create_future()
        self._waiting.append((number, [], answers, self._ends_at))
        return answers

    def _send(self) -> None:
        """Write the commands of this turn. uvloop and asyncio write at once, and do not gather by themselves."""
        unsent, self._unsent = self._unsent, []
        if not self._transport.is_closing():
            self._transport.writelines(unsent)

    async def track(self) -> None:
        """Ask the server to say what others change. Raises like the future of `ask`."""
        commands = encode_command(b"HELLO", b"3"), encode_command(b"CLIENT", b"TRACKING", b"ON", b"NOLOOP")
        await self.ask(b"".join(commands), len(commands))

    def close(self, error: Exception | None = None) -> None:
        """Close the connection at once; waiting commands fail."""
        self.is_open = False
        self._fail(error or closed_error())
        self._transport.abort()

    def retire(self) -> None:
        """Take no more commands, and close the connection when the waiting ones are answered."""
        self.is_open = False
        if not self._waiting:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._received:
            self._pieces.append(data)
            self._missing_bytes -= len(data)
            if self._missing_bytes > 0:  # a large value: its pieces are joined once
                self._heard_at = self._loop.time()
                return
        try:
            if self._received:
                data = b"".join((self._received, *self._pieces)) if self._value_at is None else self._take_value()
                self._heard_at = self._loop.time()
            self._received, self._pieces = data[self._read(data) :], []
        except (ValueError, IndexError):  # no answer to what was asked
            self.close()
        if not (self.is_open or self._waiting):
            self._transport.abort()

    def _read(self, data: bytes) -> int:
        """Pass on the answers that are complete, and return where the next one begins. Raises as `_read_one`."""
        at, size, waiting = 0, len(data), self._waiting
        while at < size:
            if waiting:
                number, found, answers, _ = waiting[0]
                end = at + SHORT_BYTES * number
                short = SHORT_ANSWERS.get(data[at:end])
                if short is not None and end <= size and not found:
                    waiting.popleft()
                    at = end
                    if not answers.done():
                        answers.set_result(short)
                    continue
            begin, at = at, self._read_one(data, at)
            if at == begin:
                break
        return at

    def _read_one(self, data: bytes, at: int) -> int:
        """Read the answer that begins at a position, and return where the next one begins: there, if it is not whole.

        Raises ValueError for what is no answer, IndexError for an answer to nothing.
        """
        answer: Any
        if (short := data[at : at + SHORT_BYTES]) in SHORT:
            answer, end = SHORT[short], at + SHORT_BYTES
        else:
            try:
                answer, end = parse_answer(data, at)
            except UnfinishedAnswer as unfinished:
                self._missing_bytes = unfinished.missing_bytes
                self._value_at = None if unfinished.value_at is None else unfinished.value_at - at
                return at
            if isinstance(answer, Push):
                self._take_news(answer)
                return end
        number, found, _, _ = self._waiting[0]
        found.append(answer)
        if len(found) == number:
            self._settle(self._waiting.popleft())
        return end

    def _take_value(self) -> bytes:
        """Pass on the pieces of the value whose end has come, and return what follows it. Raises as `_read`.

        A large one is joined in a thread, by its sender. What follows is short: the end of the last pieces.
        """
        pieces, cut = [self._received[self._value_at :], *self._pieces], len(END) - self._missing_bytes
        rest = b""
        while cut > 0:
            last = pieces.pop()
            if len(last) > cut:
                pieces.append(last[:-cut])
            rest = last[-cut:] + rest
            cut -= len(last)
        if not rest.startswith(END):
            raise ValueError("a value is longer than it says")
        number, found, _, _ = self._waiting[0]
        is_large = sum(map(len, pieces)) > LARGE_BYTES
        found.append(ValuePieces(pieces) if is_large else b"".join(pieces))
        if len(found) == number:
            self._settle(self._waiting.popleft())
        return rest[len(END) :]

    def eof_received(self) -> None:
        """Send nothing more: the transport closes itself now."""
        self.is_open = False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # an error of the network, and for a regular end none
        self.is_open = False
        self.closed.set()
        self._changed(None)  # what changes from now on is not known
        self._fail(closed_error())
        if self._timer is not None:
            self._timer.cancel()

    def _settle(self, asked: Asked) -> None:
        """Pass on answers, unless the sender was cancelled."""
        _, found, answers, _ = asked
        for answer in found:
            if answer is not None and type(answer) is not bytes and isinstance(answer, ErrorAnswer):
                fault = self._fault(answer)
                if not answers.done():
                    answers.set_exception(fault)
                return
        if not answers.done():
            answers.set_result(found)

    def _take_news(self, news: Push) -> None:
        keys = news[1] if len(news) > 1 else None
        if news[0] == b"invalidate":
            for key in [None] if keys is None else keys:
                self._changed(key.decode(errors="replace") if isinstance(key, bytes) else None)

    def _check_time(self) -> None:
        """Wait for the oldest command; after its end, once more for what may have come while the loop was busy.

        While a large answer arrives nothing is late: it may take longer, and what waits behind it is not at fault.
        """
        self._timer = None
        if self._waiting:
            wait_s = max(self._waiting[0][3], self._heard_at + self._timeout_s) - self._loop.time()
            self._timer = (
                self._loop.call_later(wait_s, self._check_time)
                if wait_s > 0
                else self._loop.call_later(GRACE_S, self._end_late, self._waiting[0])
            )

    def _end_late(self, asked: Asked) -> None:
        """Close the link if a command still has no answer: a late one would delay all others."""
        self._timer = None
        if self._waiting and self._waiting[0] is asked and self._heard_at + self._timeout_s <= self._loop.time():
            self.close(TimeoutError())
        else:
            self._check_time()

    def _fail(self, error: Exception) -> None:
        while self._waiting:
            _, _, answers, _ = self._waiting.popleft()
            if not answers.done():
                answers.set_exception(self._fault(error))


def closed_error() -> Exception:
    return ConnectionResetError("the connection to Redis was closed")


def take_over(connection: Any) -> tuple[asyncio.Transport, object]:
    """Return the transport of a connection of redis-py, which no longer knows it, and what owns it."""
    writer = connection._writer  # noqa: SLF001  it has no other name
    connection._reader = connection._writer = None  # noqa: SLF001  or it would close what it no longer has
    return writer.transport, writer
