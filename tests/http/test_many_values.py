"""A body of many small values holds the event loop no longer than a short one: checking it takes time by its values."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from proxy.workers import LARGE_BYTES, MANY_VALUES
from tests.conftest import tables_for
from tests.raw import ask, no_tasks_left, post  # noqa: F401
from tests.upstream import FakeUpstream

ROOT = str(Path(__file__).parent.parent.parent)
FOLDERS = tuple(f"{ROOT}/{name}/" for name in ("proxy", "policies", "backends"))
POLICIES = [
    {"use": "models", "deny": ["x-*"]},
    {"use": "metadata_limits"},
    {"use": "include", "deny": ["reasoning.encrypted_content"]},
    {"use": "tools", "deny_types": ["computer_use_preview"]},
    {"use": "max_tool_calls", "max": 8},
    {"use": "max_tool_calls", "max": 8, "scope": "chain"},
    {"use": "output_tokens", "max": 4096},
    {"use": "size", "max_items": 1_000_000, "max_text_chars": 100_000_000, "max_images": 9_999},
    {"use": "input_urls", "deny_hosts": ["*.internal"]},
    {"use": "safety_identifier", "pii": "reject"},
    {"use": "fields"},
]
INPUTS = {
    "numbers": (b"[%b]", b"1"),
    "arrays": (b"[%b]", b"[1]"),
    "objects": (b"[%b]", b'{"a":{"b":1}}'),
    "parts": (b'[{"role":"user","content":[%b]}]', b'{"a":{"b":1}}'),
    "tools": (b'[{"role":"user","content":[%b]}]', b'{"type":"x","tool":[{"type":"y"}]}'),
    "images": (b"[%b]", b'{"image_url":"https://a.io"}'),
}
FEW, MANY = MANY_VALUES + 100, 4 * MANY_VALUES


def body(form: bytes, element: bytes, values: int) -> bytes:
    """Return a body with so many of these elements that it has about so many values."""
    each = 1 + sum(element.count(character) for character in (b"[", b"{", b","))
    return b'{"model":"m","prompt_cache_key":"k","input":%b}' % (form % b",".join([element] * (values // each)))


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """Count, in the first element, the calls of functions of this project in the thread of the event loop."""
    count = [0]

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(FOLDERS):
            count[0] += 1

    sys.setprofile(note)
    try:
        yield count
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize(("form", "element"), INPUTS.values(), ids=INPUTS)
async def test_work_on_the_event_loop_does_not_grow_with_the_values_of_a_body(
    start_gateway, upstream: FakeUpstream, tmp_path: Path, logged, form: bytes, element: bytes
):
    """All policies check it, the cache looks it up, and a recording is made of it; its bytes alone are few."""
    gateway = await start_gateway(
        tables_for(upstream, policy=POLICIES, audit={"path": tmp_path / "audit"}, record={"path": tmp_path / "record"})
    )
    bodies = [body(form, element, values) for values in (FEW, FEW, MANY)]
    calls = []
    for raw in bodies:
        with counted_calls() as count:
            assert (await ask(gateway, post(raw))).status == 200
        calls.append(count[0])

    assert len(bodies[-1]) < LARGE_BYTES
    assert calls[2] < calls[1] + 2000  # it is received and sent in more pieces; one walk would be 2,400 calls and more
