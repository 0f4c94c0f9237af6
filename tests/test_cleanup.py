"""What ends with a call: in which order, and which errors are raised then, as `contextlib.AsyncExitStack` does it."""

from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from proxy.cleanup import Cleanup

STEPS = ["pass", "raise new", "raise same", "suppress", "callback", "failing callback", "moved"]


@asynccontextmanager
async def step(kind: str, ended: list[str]):
    try:
        yield kind
    except KeyError as error:
        ended.append(f"{kind} got {error.args[0]}")
        if kind == "raise new":
            raise KeyError("new") from error
        if kind != "suppress":
            raise
    else:
        ended.append(f"{kind} got nothing")
        if kind == "raise new":
            raise KeyError("later")


async def run(stack: Any, kinds: tuple[str, ...], *, fails: bool) -> tuple[list[str], list[str]]:
    """Return what ended with which error, and what was raised."""
    ended: list[str] = []

    async def call_back(name: str) -> None:
        ended.append(name)
        if name == "failing callback":
            raise KeyError(name)

    try:
        async with stack:
            for kind in kinds:
                if kind == "moved":
                    stack.push_async_exit(stack.pop_all())
                elif "callback" in kind:
                    stack.push_async_callback(call_back, kind)
                    stack.callback(ended.append, f"after {kind}")
                else:
                    assert await stack.enter_async_context(step(kind, ended)) == kind
            if fails:
                {}["first"]
    except KeyError as error:
        return ended, [str(error.args[0])]
    return ended, []


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("first", STEPS)
@pytest.mark.parametrize("second", STEPS)
@pytest.mark.parametrize("third", STEPS)
async def test_all_of_it_ends_as_in_an_exit_stack(first: str, second: str, third: str, fails: bool):
    kinds = (first, second, third)

    assert await run(Cleanup(), kinds, fails=fails) == await run(AsyncExitStack(), kinds, fails=fails)


async def test_a_callback_is_waited_for_if_it_returns_what_can_be_awaited():
    """Most of what is called at the end of a call has nothing to wait for."""
    ended: list[str] = []

    async def wait() -> None:
        ended.append("waited")

    stack = Cleanup()
    stack.push_async_callback(ended.append, "at once")
    stack.push_async_callback(wait)
    await stack.aclose()

    assert ended == ["waited", "at once"]


async def test_what_is_moved_ends_elsewhere():
    ended: list[str] = []
    stack = Cleanup()
    stack.callback(ended.append, "moved")
    moved = stack.pop_all()
    stack.callback(ended.append, "own")
    await stack.aclose()
    assert ended == ["own"]
    await moved.aclose()

    assert ended == ["own", "moved"]
