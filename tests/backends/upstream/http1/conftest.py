"""Runs the tests of the client on both event loops."""

import asyncio

import uvloop


def pytest_asyncio_loop_factories():
    """Return the loops by name."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
