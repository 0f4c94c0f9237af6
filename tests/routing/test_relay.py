"""Relayed paths as templates of the router."""

import pytest

from backends.replay import Replay
from proxy.routing.relay import Relay
from tests.conftest import DATA

BACKEND = Replay(name="b", path=DATA / "canonical.sse")


@pytest.mark.parametrize(
    ("path", "templates"),
    [
        ("/v1/embeddings", ("/v1/embeddings",)),
        ("/v1/files/*", ("/v1/files", "/v1/files/{rest*}")),
    ],
)
def test_a_wildcard_stands_for_the_path_itself_too(path: str, templates: tuple[str, ...]):
    """A client creates a file at /v1/files and reads it below."""
    assert Relay(path, BACKEND).templates == templates
