"""The errors of an upstream that did not answer, or not with valid HTTP. `sent` is whether it may run the request."""

from proxy.wire.errors import BackendError


def unreachable(*, retryable: bool = True) -> BackendError:
    message = "The upstream cannot be reached."
    return BackendError(message, code="upstream_unreachable", source="network", retryable=retryable, sent=False)


def timed_out(*, sent: bool = True) -> BackendError:
    message = "The upstream did not answer in time."
    return BackendError(
        message, status=504, code="upstream_timeout", source="upstream" if sent else "network", retryable=not sent,
        sent=sent,
    )  # fmt: skip


def was_reset(*, sent: bool = True) -> BackendError:
    message = "The upstream broke off the connection."
    return BackendError(message, code="upstream_reset", source="network", retryable=True, sent=sent)


def invalid_answer(found: str, *, sent: bool = True) -> BackendError:
    return BackendError(f"The upstream sent {found}.", code="upstream_invalid_response", sent=sent)
