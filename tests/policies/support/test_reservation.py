"""What a call takes of a counter before it is made, and what it settles at its end."""

from policies.support.reservation import LeasedReservation
from proxy.stores import Holder
from proxy.stores.memory import MemoryStore


async def test_what_nothing_was_reserved_for_is_counted():
    """A call can cost something although it could reserve nothing, as one that the limit let pass in report mode."""
    store = MemoryStore()
    reservation = LeasedReservation(store, 10, 60, "k", policy="budget", team="t", holder=Holder("p", 900))
    await reservation.settle(7)

    assert (await store.take("k", 0, limit=10, window_s=60)).used == 7
