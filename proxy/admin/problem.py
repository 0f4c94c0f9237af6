"""The errors of the admin API.

Source: https://www.rfc-editor.org/rfc/rfc9457
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from proxy.wire.key_patterns import redact_keys

PROBLEM_TYPE = "application/problem+json"


class Problem(Exception):
    """A request of an operator that cannot be answered as asked."""

    def __init__(
        self, status: int, code: str, detail: str, errors: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        """`code` is for programs, `detail` and the list of `errors` for people."""
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = redact_keys(detail)
        self.errors = [redact_keys(error) for error in errors]
        self.headers = headers or {}

    def as_json(self) -> dict[str, Any]:
        """Return the members of the problem."""
        title = HTTPStatus(self.status).phrase
        found = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, "code": self.code}
        return {**found, "errors": [*self.errors]} if self.errors else found

    def packed(self) -> list[Any]:
        """Return it for another process."""
        return [self.status, self.code, self.detail, [*self.errors]]
