"""Looks up the addresses of hosts: in threads of its own, within a time limit, and caching them for a short time.

A slow name server can occupy these threads only. They are daemons, so that none of them delays the end of the process.
"""

import asyncio
import socket
from collections.abc import Iterable
from concurrent.futures import Future
from ipaddress import ip_address
from threading import Thread

from cachetools import TTLCache

from policies.support.hosts import Address

MAX_LOOKUPS = 64
MAX_LOOKUPS_OF_CALLER = 16  # so that one caller with slow names leaves lookups to others
TTL_S = 30.0
MAX_CACHED = 4_096

Addresses = tuple[Address, ...]


def look_up(host: str) -> list[str]:
    """Return the addresses of a host as this machine resolves it. Raises OSError, UnicodeError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class Resolver:
    """Looks up hosts for one policy. It is used from the event loop only."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._cached: TTLCache[str, Addresses] = TTLCache(MAX_CACHED, TTL_S)
        self._running: dict[str, tuple[Future[Addresses], str]] = {}

    async def addresses(self, hosts: Iterable[str], caller: str) -> dict[str, Addresses]:
        """Return the addresses of each host; none for one that is unknown, or not found in time."""
        found = {host: self._cached.get(host, ()) for host in hosts}
        waiting = {}
        for host in [host for host, addresses in found.items() if not addresses]:
            if (lookup := self._start(host, caller)) is not None:
                waiting[asyncio.wrap_future(lookup)] = host
        if waiting:
            done, _ = await asyncio.wait(waiting, timeout=self._timeout_s)
            for lookup_result in done:
                host = waiting[lookup_result]
                found[host] = lookup_result.result()
                if found[host]:
                    self._cached[host] = found[host]
        return found

    def _start(self, host: str, caller: str) -> "Future[Addresses] | None":
        """Return the lookup of a host, which may have been running; None if too many are."""
        if (running := self._running.get(host)) is not None:
            return running[0]
        callers = [other for _, other in [*self._running.values()]]  # copied at once: threads remove entries
        if len(callers) >= MAX_LOOKUPS or callers.count(caller) >= MAX_LOOKUPS_OF_CALLER:
            return None
        lookup: Future[Addresses] = Future()
        lookup.set_running_or_notify_cancel()  # from now on it cannot be cancelled: several calls may wait for it
        self._running[host] = lookup, caller
        lookup.add_done_callback(lambda _: self._running.pop(host))
        try:
            Thread(target=_run, args=(lookup, host), name="resolve", daemon=True).start()
        except RuntimeError:  # the process may have no more threads
            lookup.set_result(())
        return lookup


def _run(lookup: "Future[Addresses]", host: str) -> None:
    addresses: Addresses = ()
    try:
        addresses = tuple(map(ip_address, look_up(host)))
    except (OSError, ValueError):  # no such name, no name server, or a name that cannot be asked for
        pass
    finally:
        lookup.set_result(addresses)
