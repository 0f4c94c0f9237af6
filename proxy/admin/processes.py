"""The processes of a gateway, as the admin listener sees them: this one, or the workers of a supervisor."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.admin.problem import Problem
from proxy.http.health import Report
from proxy.telemetry.instruments import Snapshot


class AskProcesses(Protocol):
    """Puts a question, a word and an argument, to one process or to all of them."""

    async def __call__(self, word: str, argument: Any, *, of_all: bool) -> list[Any]:
        """Return the answers, all JSON, of those that answer in time."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Asks the processes of a gateway, and gives them orders."""

    ask: AskProcesses
    snapshot: Callable[[], Awaitable[Snapshot]]
    """Returns the metrics of all processes together."""
    report: Callable[[], Awaitable[Report]]
    """Returns what /readyz answers."""
    reload: Callable[[], Awaitable[Report]] | None = None
    """Reads the config again: a status, and the changes or the faults."""

    async def all(self, word: str, **argument: Any) -> list[Any]:
        """Return the answers of all processes. Raises Problem if none answers, or for the first that refuses."""
        return _unpacked(await self.ask(word, argument, of_all=True))

    async def one(self, word: str, **argument: Any) -> Any:
        """Return the answer of one process, where each would answer the same. Raises Problem."""
        return _unpacked(await self.ask(word, argument, of_all=False))[0]


def _unpacked(answers: list[Any]) -> list[Any]:
    if not answers:
        raise Problem(503, "no_process", "No process of the gateway answers at the moment.")
    for answer in answers:
        if "problem" in answer:
            raise Problem(*answer["problem"])
    return [answer["value"] for answer in answers]
