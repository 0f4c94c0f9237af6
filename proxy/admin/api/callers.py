"""The callers that a process knows."""

from collections.abc import Sequence

from proxy.admin.parts import GatewayParts
from proxy.context import Caller
from proxy.identity.directory import ANONYMOUS


def known_callers(parts: GatewayParts) -> Sequence[Caller]:
    """Return those of the config and of issued keys, each once; a gateway without callers has one for everybody."""
    directory = parts.lasting.directory
    return [ANONYMOUS] if directory.is_open else [*dict.fromkeys(directory.callers())]
