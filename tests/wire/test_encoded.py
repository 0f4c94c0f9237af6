"""JSON that is kept takes the memory of its bytes."""

import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.state.ownership import Owner
from proxy.wire import large_json
from proxy.wire.encoded import encode, trimmed

VALUES = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists)
OWNER = Owner("search", "ada", "openai", "0" * 32)
KEPT = {
    "a value": lambda number: encode([number, "text"]),
    "a body": lambda number: large_json.dumps({"input": f"{number}" * 200}, 1_000),
    "an owner": lambda number: OWNER._replace(chain=f"{number:032x}").encode(),
}


@given(VALUES)
def test_the_bytes_are_those_of_orjson(value: object):
    assert encode(value) == trimmed(orjson.dumps(value)) == orjson.dumps(value)


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_what_is_kept_takes_its_own_size(make):
    """The buffer that orjson wrote into would take 4 KB and more."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = [make(number) for number in range(500)]
        each = (tracemalloc.get_traced_memory()[0] - before) / len(kept)
    finally:
        tracemalloc.stop()

    assert each < len(kept[-1]) + 200
