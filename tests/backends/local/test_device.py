"""Where a model runs."""

import _ctypes
import shutil
import sys
from dataclasses import replace

import ctranslate2
import pytest

from backends.local.device import CUBLAS, Placement, place, preload_cublas
from backends.local.model import read_model
from tests.models import write_model

WANTED = Placement("auto", 0, "default", workers=1, intra_threads=1)
no_card = pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="for machines without a graphics card")
on_card = pytest.mark.skipif(ctranslate2.get_cuda_device_count() == 0, reason="for machines with a graphics card")


@no_card
def test_without_a_graphics_card_it_is_the_processor(model):
    """In 8-bit integers, as the model was stored."""
    generator = place(model, WANTED)

    assert (generator.device, generator.compute_type) == ("cpu", "int8_float32")


@no_card
def test_a_graphics_card_that_is_not_there_is_refused(model):
    """When the config insists on one."""
    with pytest.raises(OSError, match="there is no graphics card, or no driver for it"):
        place(model, replace(WANTED, device="cuda"))


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
def test_a_graphics_card_is_taken_where_there_is_one(model):
    assert place(model, WANTED).device == "cuda"


def test_a_type_that_the_device_lacks_is_refused(model):
    with pytest.raises(OSError, match="cannot be loaded on cpu as int8_bfloat16: Requested int8_bfloat16"):
        place(model, replace(WANTED, device="cpu", compute_type="int8_bfloat16"))


def test_weights_that_are_none_are_refused(tmp_path):
    """In a sentence, with what the library says of them."""
    folder = write_model(tmp_path / "broken", ["Hi"])
    (folder / "model.bin").write_bytes(b"\0" * 64)

    with pytest.raises(OSError, match=f"The model in {folder} cannot be loaded on cpu as default: "):
        place(read_model(folder), replace(WANTED, device="cpu"))
