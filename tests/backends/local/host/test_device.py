"""Where a model runs."""

import _ctypes
import shutil
import sys
from dataclasses import replace

import ctranslate2
import pytest
import structlog

from backends.local.host import device
from backends.local.host.device import CUBLAS, Placement, place, preload_cublas, refuse

WANTED = Placement("auto")
no_card = pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="for machines without a graphics card")
on_card = pytest.mark.skipif(ctranslate2.get_cuda_device_count() == 0, reason="for machines with a graphics card")


@no_card
def test_without_a_graphics_card_it_is_the_processor(greeter):
    """In 8-bit integers, as the model was stored."""
    generator = place(*greeter, WANTED)

    assert (generator.device, generator.compute_type) == ("cpu", "int8_float32")


@no_card
def test_a_graphics_card_that_is_not_there_is_refused(greeter):
    """When the config insists on one."""
    with pytest.raises(OSError, match="there is no graphics card, or no driver for it"):
        place(*greeter, replace(WANTED, device="cuda"))


@no_card
def test_cublas_may_be_nowhere():
    assert preload_cublas() is False


def test_cublas_is_found_in_its_wheel(tmp_path, monkeypatch):
    """By path, so that nobody has to set LD_LIBRARY_PATH."""
    libraries = tmp_path / "nvidia" / "cublas" / "lib"
    libraries.mkdir(parents=True)
    for name in CUBLAS:
        shutil.copy(_ctypes.__file__, libraries / name)  # any library does
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert preload_cublas()
    finally:
        sys.modules.pop("nvidia", None)


@on_card
def test_a_graphics_card_is_taken_where_there_is_one(greeter):
    assert place(*greeter, WANTED).device == "cuda"


def test_a_type_that_the_device_lacks_is_refused(greeter):
    with pytest.raises(OSError, match="cannot be loaded on cpu as int8_bfloat16: Requested int8_bfloat16"):
        place(*greeter, replace(WANTED, device="cpu", compute_type="int8_bfloat16"))


def test_weights_that_are_none_are_refused(tmp_path, greeter):
    """In a sentence, with what the library says of them."""
    folder = tmp_path / "broken"
    shutil.copytree(greeter.path, folder)
    (folder / "model.bin").write_bytes(b"\0" * 64)

    with pytest.raises(OSError, match=f"The model in {folder} cannot be loaded on cpu as default: "):
        place(folder, greeter.vocabulary, replace(WANTED, device="cpu"))


@pytest.mark.parametrize("wanted", [{"workers": 0}, {"intra_threads": 0}, {"device_index": ()}])
def test_a_model_without_a_worker_is_refused(wanted):
    """The library takes it, and never answers."""
    with pytest.raises(ValueError, match="at least one worker, one thread and one device"):
        Placement(**wanted)


def test_it_says_how_many_batches_it_runs(greeter):
    """Which is more than there are workers where there are several cards."""
    assert place(*greeter, Placement("cpu", (3, 4), workers=3)).num_generators == 3


@no_card
def test_a_card_that_does_not_work_is_passed_over(greeter, monkeypatch):
    """With a line that says why; the model runs on the processor. Whoever insists on it is refused."""
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 1)
    with structlog.testing.capture_logs() as lines:
        assert place(*greeter, WANTED).device == "cpu"
    assert [(line["event"], line["log_level"]) for line in lines] == [("local.cuda_failed", "warning")]
    assert 'pip install "headgate[cuda]"' in lines[0]["error"]

    monkeypatch.setattr(device, "preload_cublas", lambda: True)
    with pytest.raises(OSError, match="Graphics card 0, 2 cannot be used: "):
        place(*greeter, replace(WANTED, device="cuda", device_index=(0, 2)))
    with pytest.raises(OSError, match="cannot be loaded on cuda as float16: "):
        place(*greeter, replace(WANTED, device="cuda", compute_type="float16"))


@no_card
def test_the_best_that_all_cards_can_do_is_taken(greeter, monkeypatch):
    """When nothing is asked for."""
    can = {0: {"bfloat16", "float16", "int8"}, 1: {"float16", "int8"}}
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 2)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda _, index: can[index])
    monkeypatch.setattr(device, "preload_cublas", lambda: True)

    with pytest.raises(OSError, match="cannot be loaded on cuda as float16: "):
        place(*greeter, replace(WANTED, device="cuda", device_index=(0, 1)))


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
