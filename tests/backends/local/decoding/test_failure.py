"""What is reported of a library's failure."""

import pytest

from backends.local.decoding.failure import describe_failure


@pytest.mark.parametrize(
    ("error", "described"),
    [
        (RuntimeError("CUDA failed with error out of memory"), "RuntimeError: out of memory, cuda"),
        (MemoryError("std::bad_alloc"), "MemoryError: bad_alloc, memoryerror"),
        (RuntimeError("cuBLAS failed with status 13"), "RuntimeError: cublas"),
    ],
)
def test_what_an_operator_must_know_is_reported(error: Exception, described: str):
    """A lack of memory also ends the process of the engine."""
    assert describe_failure(error) == described


def test_the_message_of_another_failure_is_not_reported():
    """It may quote a prompt or a schema."""
    with pytest.raises(ValueError, match="password") as caught:
        int("my password")
    described = describe_failure(caught.value)

    assert described.startswith("ValueError at ")
    assert "password" not in described
