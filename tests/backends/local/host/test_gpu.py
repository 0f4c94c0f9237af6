"""Tests of what a GPU changes in the costs of a model, with the CPU in its place where there is none."""

import ctypes
import time

import ctranslate2
import pytest

from backends.local.host import gpu
from backends.local.host.device import Placement, load_generator
from backends.local.host.gpu import measure_engine, read_free_bytes

without_gpu = pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="for machines without a GPU")
with_gpu = pytest.mark.skipif(ctranslate2.get_cuda_device_count() == 0, reason="for machines with a GPU")
LOADING_S = 0.3  # longer than a measurement takes


class Card:
    """The library's generator as if it ran on GPUs, which load a kernel when prompts of a shape come first."""

    device = "cuda"

    def __init__(self, generator, compute_type="bfloat16", device_index=(0,)):
        self._generator, self._seen = generator, set()
        self.compute_type, self.device_index = compute_type, device_index
        self.num_generators = 2 * len(device_index)

    def generate_batch(self, prompts, **options):
        shape = len(prompts), len(prompts[0]), options["max_length"]
        if shape not in self._seen:
            time.sleep(LOADING_S)
        self._seen.add(shape)
        return self._generator.generate_batch(prompts, **options)


def measured(generator, model, monkeypatch, free_bytes=10**9, prefix_cache_bytes=10**8, **card):
    monkeypatch.setattr(gpu, "read_free_bytes", lambda _indexes: free_bytes)
    return measure_engine(Card(generator, **card), model.vocabulary, 1024, prefix_cache_bytes)


def test_the_workers_of_a_cpu_share_nothing(greeting_model):
    with greeting_model.loaded(workers=3) as generator:
        costs = measure_engine(generator, greeting_model.vocabulary, 1024, 10**8)

    assert (costs.workers, costs.gpus, costs.max_kv_bytes, costs.kv_bytes_per_token) == (3, 0, None, 1024)


def test_answers_get_half_of_the_free_memory_of_a_gpu(greeting_model, monkeypatch):
    """Without the prefix cache."""
    with greeting_model.loaded() as generator:
        costs = measured(generator, greeting_model, monkeypatch, device_index=(0, 3))

    assert (costs.workers, costs.gpus, costs.max_kv_bytes) == (4, 2, 450_000_000)


@pytest.mark.parametrize(("free_bytes", "max_kv_bytes"), [(None, None), (10**7, 0)])
def test_a_gpu_may_be_full_or_not_say_what_is_free(greeting_model, monkeypatch, free_bytes, max_kv_bytes):
    with greeting_model.loaded() as generator:
        costs = measured(generator, greeting_model, monkeypatch, free_bytes)

    assert costs.max_kv_bytes == max_kv_bytes


@pytest.mark.parametrize(
    ("compute_type", "size"), [("float32", 1024), ("int8_float32", 1024), ("bfloat16", 512), ("int8_float16", 512)]
)
def test_the_memory_of_a_token_depends_on_the_type(greeting_model, monkeypatch, compute_type, size):
    with greeting_model.loaded() as generator:
        costs = measured(generator, greeting_model, monkeypatch, compute_type=compute_type)

    assert costs.kv_bytes_per_token == size


def test_the_first_use_of_a_kernel_is_not_measured(greeting_model, monkeypatch):
    """It loads the kernel, which takes far longer than a step."""
    with greeting_model.loaded() as generator:
        costs = measured(generator, greeting_model, monkeypatch)

    assert costs.step_s < LOADING_S / 3
    assert costs.prefill_s_per_token < LOADING_S / 60


@without_gpu
def test_the_free_memory_of_a_missing_gpu_is_not_known():
    assert read_free_bytes([0]) is None


@with_gpu
def test_the_free_memory_of_a_gpu_is_read(greeting_model):
    generator = load_generator(*greeting_model, Placement("cuda"))

    assert 10**8 < (read_free_bytes(generator.device_index) or 0) < 10**13
    assert read_free_bytes([1000]) is None


class Driver:
    """A driver with two GPUs, which records the calls for contexts. Every call returns a status; 0: success."""

    FREE = (3_000, 2_000)

    def __init__(self, status=0):
        self.calls, self._status, self._device = [], status, 0

    def cuInit(self, _flags):  # noqa: N802  the names of the driver
        return 0

    def cuDeviceGet(self, device, index):  # noqa: N802
        device._obj.value = index
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):  # noqa: N802
        context._obj.value = 100 + device.value
        self.calls.append(("retain", device.value))
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device):  # noqa: N802
        self.calls.append(("release", device.value))
        return 0

    def cuCtxPushCurrent_v2(self, context):  # noqa: N802
        self.calls.append(("push", context.value))
        self._device = context.value - 100
        return 0

    def cuCtxPopCurrent_v2(self, _context):  # noqa: N802
        self.calls.append(("pop",))
        return 0

    def cuMemGetInfo_v2(self, free, _total):  # noqa: N802
        free._obj.value = self.FREE[self._device]
        return self._status


def test_the_gpu_with_least_free_memory_counts(monkeypatch):
    """The thread has no context of the driver afterwards."""
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)

    assert read_free_bytes([0, 1]) == 2_000
    assert driver.calls == [
        step for index in (0, 1) for step in (("retain", index), ("push", 100 + index), ("pop",), ("release", index))
    ]


def test_an_error_of_the_driver_leaves_no_context(monkeypatch):
    driver = Driver(status=2)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)

    assert read_free_bytes([0]) is None
    assert driver.calls[-2:] == [("pop",), ("release", 0)]
