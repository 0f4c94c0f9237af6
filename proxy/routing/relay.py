"""A relayed path: requests below it pass to one backend as they are."""

from dataclasses import dataclass

from backends import Backend

BASE = "/v1/"


@dataclass(frozen=True, slots=True)
class Relay:
    """A path as the config has it, and the backend that answers there. `/v1/files/*` stands for /v1/files as well."""

    path: str
    target: Backend

    @property
    def prefix(self) -> str:
        """Return the path without its wildcard."""
        return self.path.removesuffix("/*")

    @property
    def templates(self) -> tuple[str, ...]:
        """Return the templates of the router that stand for the path."""
        return (self.prefix, f"{self.prefix}/{{rest*}}") if self.path.endswith("/*") else (self.path,)
