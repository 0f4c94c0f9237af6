"""Finds what would prevent a start with a config, without starting, creating or loading anything."""

from collections.abc import Callable, Iterator
from functools import partial

from proxy.config.build import Config
from proxy.config.paths import check_writable
from proxy.http.tls import server_context


def start_faults(config: Config) -> Iterator[str]:
    """Yield what is wrong with the files that a config names, each with the path of the table that names it."""
    yield from _tls_faults(config)
    for index, (name, backend) in enumerate(config.backends.items()):
        yield from _fault(backend.check, f"backend[{index}]", f"'{name}' cannot start: ")
    yield from _fault(config.state.check, "state.path")
    if config.cache_store is not None:
        yield from _fault(config.cache_store.check, "cache.path")
    for table, settings in (("audit", config.audit), ("record", config.record)):
        if settings is not None:
            yield from _fault(partial(check_writable, settings.path), f"{table}.path")


def _tls_faults(config: Config) -> Iterator[str]:
    certificate, key = config.server.tls_cert, config.server.tls_key
    try:
        if certificate is not None and key is not None:
            server_context(certificate, key)
    except ValueError as error:  # it begins with the name of the key
        yield f"server.{error}"


def _fault(check: Callable[[], object], path: str, what: str = "") -> Iterator[str]:
    try:
        check()
    except OSError as error:
        yield f"{path}: {what}{error.filename}: {error.strerror}" if error.filename else f"{path}: {what}{error}"
    except ValueError as error:
        yield f"{path}: {what}{error}"
