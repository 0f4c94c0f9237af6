"""How the failure of a library is reported: without its message, which may quote a prompt or a schema."""

from proxy.wire.loggable import summarize_error

OUT_OF_MEMORY = ("out of memory", "bad_alloc", "memoryerror", "failed to allocate memory")  # as libraries report it
DEVICE_FAILED = ("cuda", "cublas", "cudnn", "illegal memory access")


def describe_failure(error: BaseException) -> str:
    """Return the type of an error, and what is known of its cause: lack of memory, the GPU, or its place."""
    text = f"{type(error).__name__}: {error}".lower()
    known = [phrase for phrase in (*OUT_OF_MEMORY, *DEVICE_FAILED) if phrase in text]
    return f"{type(error).__name__}: {', '.join(known)}" if known else summarize_error(error)
