"""What this machine can do."""

import ctranslate2
import pytest

from backends.local.engine.able import refuse
from backends.local.engine.device import Placement

CARD = {"float16", "int8_float16"}


@pytest.fixture
def cards(monkeypatch):
    """A machine with so many graphics cards."""
    kinds = ctranslate2.get_supported_compute_types("cpu")
    monkeypatch.setattr(
        ctranslate2, "get_supported_compute_types", lambda device, _=0: {"cpu": kinds}.get(device, CARD)
    )

    def has(number):
        monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: number)

    return has


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (0, Placement()),
        (0, Placement("cpu", compute_type="int8")),
        (0, Placement("cpu", compute_type="auto")),
        (2, Placement("cuda", (0, 1), "float16")),
        (1, Placement("auto", compute_type="float16")),
    ],
)
def test_what_there_is_can_be_asked_for(cards, number, wanted):
    cards(number)
    refuse(wanted)


@pytest.mark.parametrize(
    ("number", "wanted", "said"),
    [
        (0, Placement("cuda"), 'device is "cuda", but there is no graphics card'),
        (1, Placement("cuda", (0, 1)), "device_index is 1, but the last graphics card is 0."),
        (0, Placement(compute_type="int3"), r"compute_type is 'int3'; this machine has .*float32.*, or default\."),
        (
            1,
            Placement("cuda", compute_type="int3"),
            "compute_type is 'int3'; this machine has float16, int8_float16, or",
        ),
        (1, Placement("cpu", compute_type="int8_float16"), "compute_type is 'int8_float16'; this machine has"),
    ],
)
def test_what_is_not_there_is_said(cards, number, wanted, said):
    cards(number)
    with pytest.raises(ValueError, match=said):
        refuse(wanted)
