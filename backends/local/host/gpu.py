"""Measures a loaded model. A GPU changes two things: its workers share it, and answers need its memory.

Source: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from backends.local.scheduling.costs import Costs, measure_costs, run_trials

DRIVER = "libcuda.so.1"
# The part of the free memory that answers may take: one in so many. The rest is for copies: when a row of a batch has
# ended, the library copies the cache of all others.
KV_FRACTION = 2


def measure_engine(
    generator: Any, vocabulary: Sequence[str], kv_bytes_per_token: int, prefix_cache_bytes: int
) -> Costs:
    """Return the costs of a loaded model, and on a GPU what its workers share. Runs it for about a second.

    `kv_bytes_per_token` is that of a CPU, in numbers of 32 bits; 16-bit types need half of it.
    """
    if generator.device != "cuda":
        return measure_costs(generator, vocabulary, generator.num_generators, kv_bytes_per_token)
    run_trials(generator, vocabulary)  # the first use of a kernel loads it, or has the driver compile it
    token_bytes = kv_bytes_per_token // (2 if "float16" in generator.compute_type else 1)
    costs = measure_costs(generator, vocabulary, generator.num_generators, token_bytes)
    free = read_free_bytes(generator.device_index)
    max_kv_bytes = None if free is None else max(0, free - prefix_cache_bytes) // KV_FRACTION
    return replace(costs, gpus=len(generator.device_index), max_kv_bytes=max_kv_bytes)


def read_free_bytes(indexes: Sequence[int]) -> int | None:
    """Return the free memory of the GPU that has least, in a process that uses them; None where it is not known."""
    try:
        driver = ctypes.CDLL(DRIVER)
        return min(_free_bytes(driver, index) for index in indexes)
    except (OSError, AttributeError):
        return None


def _free_bytes(driver: ctypes.CDLL, index: int) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with _context(driver, index):
        _check(driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    return free.value


@contextmanager
def _context(driver: ctypes.CDLL, index: int) -> Iterator[None]:
    """Use in this thread the context that the library has on a GPU."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(driver.cuInit(0))
    _check(driver.cuDeviceGet(ctypes.byref(device), index))
    _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    try:
        _check(driver.cuCtxPushCurrent_v2(context))
        try:
            yield
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _check(status: int) -> None:
    if status:
        raise OSError(f"The driver of the GPU returned error {status}.")
