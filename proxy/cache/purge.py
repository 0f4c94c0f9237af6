"""Removes entries of the cache by what they are."""

from collections.abc import Iterable, Mapping, Sequence

from proxy.cache.vault import Vault
from proxy.cache.vault_keys import Partition
from proxy.context import Caller


def partitions_of(callers: Iterable[Caller], team: str | None) -> Sequence[Partition]:
    """Return all those who may share entries, and a team that may have no callers any more."""
    known = [*callers]
    teams = dict.fromkeys([*(caller.team for caller in known), *([] if team is None else [team])])
    return [
        *(Partition("team", name) for name in teams),
        *(Partition("caller", caller.team, caller.name) for caller in known),
        Partition("all"),
    ]


async def purge(vault: Vault, partitions: Sequence[Partition], wanted: Mapping[str, str]) -> int:
    """Remove the entries that have all of these labels, and return how many. Raises StoreError."""
    count = 0
    async for entry in vault.entries(partitions):
        if entry.labels is not None and wanted.items() <= entry.labels.items():
            await vault.remove(entry.name)
            count += 1
    return count
