"""Tests of devices: loading a model, and checks without one."""

import _ctypes
import shutil
import sys
from dataclasses import replace

import ctranslate2
import pytest
import structlog

from backends.local.host import device
from backends.local.host.device import (
    CUBLAS,
    Placement,
    check_placement,
    count_cores,
    load_generator,
    preload_cublas,
)

PLACEMENT = Placement("auto")
without_gpu = pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="for machines without a GPU")
with_gpu = pytest.mark.skipif(ctranslate2.get_cuda_device_count() == 0, reason="for machines with a GPU")


@without_gpu
def test_without_a_gpu_the_model_runs_on_the_cpu(greeting_model):
    """In 8-bit integers, as it is stored."""
    generator = load_generator(*greeting_model, PLACEMENT)

    assert (generator.device, generator.compute_type) == ("cpu", "int8_float32")


@without_gpu
def test_a_missing_gpu_is_an_error_when_it_is_required(greeting_model):
    with pytest.raises(OSError, match="there is no GPU with a driver"):
        load_generator(*greeting_model, replace(PLACEMENT, device="cuda"))


@without_gpu
def test_cublas_may_be_missing():
    assert preload_cublas() is False


def test_cublas_is_found_in_its_wheel(tmp_path, monkeypatch):
    """By path, so LD_LIBRARY_PATH is not needed."""
    libraries = tmp_path / "nvidia" / "cublas" / "lib"
    libraries.mkdir(parents=True)
    for name in CUBLAS:
        shutil.copy(_ctypes.__file__, libraries / name)  # any library will do
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert preload_cublas()
    finally:
        sys.modules.pop("nvidia", None)


def test_a_worker_for_each_core_is_the_default_on_a_cpu(greeting_model):
    generator = load_generator(*greeting_model, Placement("cpu", workers=None))

    assert generator.num_generators == count_cores()


@with_gpu
def test_two_workers_are_the_default_on_a_gpu(greeting_model):
    """One per core made 16 callers ten times slower: a batch is one worker's work."""
    assert load_generator(*greeting_model, Placement("cuda", workers=None)).num_generators == 2


@with_gpu
def test_a_gpu_is_used_where_there_is_one(greeting_model):
    assert load_generator(*greeting_model, PLACEMENT).device == "cuda"


def test_a_compute_type_that_the_device_lacks_is_an_error(greeting_model):
    with pytest.raises(OSError, match="cannot be loaded on cpu as int8_bfloat16: Requested int8_bfloat16"):
        load_generator(*greeting_model, replace(PLACEMENT, device="cpu", compute_type="int8_bfloat16"))


def test_invalid_weights_are_an_error(tmp_path, greeting_model):
    """With the message of the library."""
    folder = tmp_path / "broken"
    shutil.copytree(greeting_model.path, folder)
    (folder / "model.bin").write_bytes(b"\0" * 64)

    with pytest.raises(OSError, match=f"The model in {folder} cannot be loaded on cpu as default: "):
        load_generator(folder, greeting_model.vocabulary, replace(PLACEMENT, device="cpu"))


@pytest.mark.parametrize("placement", [{"workers": 0}, {"intra_threads": 0}, {"device_index": ()}])
def test_a_placement_has_at_least_one_worker_thread_and_device(placement):
    """The library accepts zero, and never answers."""
    with pytest.raises(ValueError, match="at least one worker, one thread and one device"):
        Placement(**placement)


def test_num_generators_is_the_number_of_simultaneous_batches(greeting_model):
    """With several GPUs it is larger than the number of workers."""
    assert load_generator(*greeting_model, Placement("cpu", (3, 4), workers=3)).num_generators == 3


@without_gpu
def test_a_gpu_that_does_not_work_is_skipped(greeting_model, monkeypatch):
    """With a log line; the model runs on the CPU. It is an error when a GPU is required."""
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 1)
    with structlog.testing.capture_logs() as lines:
        assert load_generator(*greeting_model, PLACEMENT).device == "cpu"
    assert [(line["event"], line["log_level"]) for line in lines] == [("gpu.unusable", "warning")]
    assert all(part in lines[0]["error"] for part in ("libcublas.so.12 was not found", 'pip install "headgate[cuda]"'))

    monkeypatch.setattr(device, "preload_cublas", lambda: True)
    with pytest.raises(OSError, match="GPU 0, 2 cannot be used: "):
        load_generator(*greeting_model, replace(PLACEMENT, device="cuda", device_index=(0, 2)))
    with pytest.raises(OSError, match="cannot be loaded on cuda as float16: "):
        load_generator(*greeting_model, replace(PLACEMENT, device="cuda", compute_type="float16"))


@without_gpu
def test_the_best_type_of_all_gpus_is_the_default(greeting_model, monkeypatch):
    types = {0: {"bfloat16", "float16", "int8"}, 1: {"float16", "int8"}}
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 2)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda _, index: types[index])
    monkeypatch.setattr(device, "preload_cublas", lambda: True)

    with pytest.raises(OSError, match="cannot be loaded on cuda as float16: "):
        load_generator(*greeting_model, replace(PLACEMENT, device="cuda", device_index=(0, 1)))


CARD = {"float16", "int8_float16"}


@pytest.fixture
def cards(monkeypatch):
    """A function that sets the number of GPUs of this machine."""
    kinds = ctranslate2.get_supported_compute_types("cpu")
    monkeypatch.setattr(
        ctranslate2, "get_supported_compute_types", lambda device, _=0: {"cpu": kinds}.get(device, CARD)
    )

    def set_cards(number):
        monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: number)

    return set_cards


@pytest.mark.parametrize(
    ("number", "placement"),
    [
        (0, Placement()),
        (0, Placement("cpu", compute_type="int8")),
        (0, Placement("cpu", compute_type="auto")),
        (2, Placement("cuda", (0, 1), "float16")),
        (1, Placement("auto", compute_type="float16")),
    ],
)
def test_existing_devices_and_types_pass_the_check(cards, number, placement):
    cards(number)
    check_placement(placement)


@pytest.mark.parametrize(
    ("number", "placement", "message"),
    [
        (0, Placement("cuda"), 'device is "cuda", but there is no GPU with a driver'),
        (1, Placement("cuda", (0, 1)), "device_index is 1, but the last GPU is 0."),
        (0, Placement(compute_type="int3"), r"compute_type is 'int3'; this machine supports .*float32.*, or default\."),
        (
            1,
            Placement("cuda", compute_type="int3"),
            "compute_type is 'int3'; this machine supports float16, int8_float16, or",
        ),
        (1, Placement("cpu", compute_type="int8_float16"), "compute_type is 'int8_float16'; this machine supports"),
    ],
)
def test_missing_devices_and_types_fail_the_check(cards, number, placement, message):
    cards(number)
    with pytest.raises(ValueError, match=message):
        check_placement(placement)
