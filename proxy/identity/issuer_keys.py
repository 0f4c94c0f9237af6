"""The keys of one issuer: fetched in the background, and once more for a token with an unknown key.

While the issuer is away the last keys are used for `stale_s`. Then, and for keys that are not known, calls get 503.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from proxy.identity.issuer_table import IssuerTable, read_document
from proxy.identity.key_set import KeySet, VerificationKey, parse_key_set
from proxy.wire.errors import Unavailable
from proxy.wire.loggable import printable

log = structlog.get_logger()

Fetch = Callable[[IssuerTable], Awaitable[bytes]]
"""Returns the document with an issuer's keys. Raises OSError, or ValueError with a reason in the gateway's words."""

MIN_REFETCH_S = 5.0
"""The shortest time between two fetches for unknown keys: anyone can invent names of keys."""
FIRST_RETRY_S = 1.0
MAX_ABSENT = 1000
"""How many names of keys that the issuer does not have are remembered."""


class KeysPending(Unavailable):
    """The keys of an issuer are being fetched; when `wait` returns the request can be identified again."""

    def __init__(self, message: str, fetch: "asyncio.Task[None]") -> None:
        super().__init__(message, code="issuer_unavailable")
        self._fetch = fetch

    async def wait(self) -> None:
        """Wait until it is known whether they could be fetched."""
        await asyncio.wait([self._fetch])


class IssuerKeys:
    """Holds the keys of an issuer, which a task begun by `start` fetches."""

    def __init__(
        self,
        table: IssuerTable,
        fetch: Fetch,
        on_change: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change` is called when keys have gone or come: what was checked with the old ones counts no more."""
        self.table = table
        self.outcomes = {"succeeded": 0, "failed": 0}
        """The number of fetches by outcome."""
        self._fetch = fetch
        self._on_change = on_change
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._document = b""
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._logged_word: str | None = None  # how it was when the log said that it is away
        self._task: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._asked: set[str | None] = set()  # names of keys that are not known, for which they are being fetched
        self._absent: frozenset[str | None] = frozenset()  # of them those that the issuer does not have

    def start(self) -> None:
        """Begin to fetch the keys regularly."""
        self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop fetching. Requests that wait for keys are identified again."""
        tasks = [task for task in (self._following, self._task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def age_s(self) -> float | None:
        """The age of the current keys in seconds; None without any."""
        return None if self._keys is None else self._monotonic() - self._fetched_at

    @property
    def word(self) -> str:
        """Return the condition of the issuer: "up", "stale" while old keys are used, "down" without any."""
        if self._keys is None:
            return "down"
        return "up" if self._fetched_at == self._tried_at else "stale"

    def find(self, key_id: str | None, algorithm: str) -> Sequence[VerificationKey]:
        """Return the keys that may have signed a token; none if the issuer has no such key.

        Raises KeysPending if they have to be fetched first, and Unavailable if that is not possible now.
        """
        if self._keys is not None:
            found = self._keys.find(key_id, algorithm)
            if found or key_id in self._absent or key_id in self._keys.names:
                return found
        now, name = self._monotonic(), self.table.name
        since_s = MIN_REFETCH_S if self._tried_at is None else now - self._tried_at
        if self._task is None and since_s < MIN_REFETCH_S:
            message = (
                f"The key that signed this token could not be fetched from the issuer '{name}'. "
                "Try again later; the operator of this gateway can see the reason."
            )
            raise Unavailable(message, code="issuer_unavailable", after_s=MIN_REFETCH_S - since_s)
        if len(self._asked) < MAX_ABSENT:
            self._asked.add(key_id)
        raise KeysPending(f"The keys of the issuer '{name}' are being fetched; try again.", self.refresh())

    def refresh(self) -> "asyncio.Task[None]":
        """Return the task that fetches the keys now; there is one at a time."""
        if self._task is None:
            self._task = asyncio.create_task(self._refresh())
        return self._task

    async def _follow(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            await asyncio.wait([self.refresh()])
            if self.word == "up":
                retry_s, pause_s = FIRST_RETRY_S, self.table.refresh_s
            else:
                pause_s, retry_s = retry_s, min(retry_s * 2, self.table.refresh_s)
            await asyncio.sleep(pause_s * random.uniform(0.9, 1))  # noqa: S311  so that not all processes ask at once

    async def _refresh(self) -> None:
        began = self._tried_at = self._monotonic()
        try:
            document = await self._read()
            keys = self._keys
            if keys is None or document != self._document:
                keys = await asyncio.to_thread(parse_key_set, document)
        except (ValueError, OSError) as error:
            self._fail(error)
        else:
            self._take(keys, document, began)
        finally:
            self._task = None
            self._asked = set()

    async def _read(self) -> bytes:
        table = self.table
        if table.jwks_file is not None:
            return await asyncio.to_thread(read_document, table.jwks_file)
        try:
            async with asyncio.timeout(table.timeout_s):
                return await self._fetch(table)
        except TimeoutError:
            raise ValueError(f"no answer within {table.timeout_s:g} s") from None

    def _take(self, keys: KeySet, document: bytes, began: float) -> None:
        self.outcomes["succeeded"] += 1
        is_new, was_away = document != self._document, self._logged_word is not None
        self._logged_word = None
        if is_new or was_away:
            log.info("issuer.keys_fetched", issuer=self.table.name, keys=len(keys.keys))
        self._keys, self._document = keys, document
        self._tried_at = self._fetched_at = began
        self._absent = frozenset(self._asked - keys.names)
        if is_new:
            self._on_change()

    def _fail(self, error: ValueError | OSError) -> None:
        self.outcomes["failed"] += 1
        if self._keys is not None and self._monotonic() - self._fetched_at > self.table.stale_s:
            self._keys, self._document = None, b""
            self._on_change()
        if self.word != self._logged_word:
            self._logged_word = self.word
            reason = printable(str(error) if isinstance(error, ValueError) else error.strerror or "no connection")
            log.warning("issuer.unavailable", issuer=self.table.name, reason=reason, has_keys=self._keys is not None)
