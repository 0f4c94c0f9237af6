"""Loads a model on a GPU where one works, otherwise on the CPU, and checks a placement without loading anything.

Source: https://opennmt.net/CTranslate2/quantization.html, https://opennmt.net/CTranslate2/hardware_support.html
"""

import ctypes
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import structlog

from proxy.wire.loggable import short_message

log = structlog.get_logger()

# The library opens these by name at its first multiplication; opened by path before, they need no LD_LIBRARY_PATH.
CUBLAS = ("libcublasLt.so.12", "libcublas.so.12")
# The default compute type on a GPU: the first of these that all its cards support.
PREFERRED_ON_CUDA = ("bfloat16", "float16", "int8_float16", "int8", "float32")
# Compute types that every device accepts.
PORTABLE_TYPES = frozenset({"default", "auto"})
# The workers of each GPU: one runs a batch of all that wait, one those that come meanwhile. They slow each other down.
GPU_WORKERS = 2
NO_CUBLAS = (
    "A GPU needs cuBLAS 12, and libcublas.so.12 was not found (CUDA 13 has libcublas.so.13): "
    'pip install "headgate[cuda]".'
)
NO_GPU = 'device is "cuda", but there is no GPU with a driver; "auto" and "cpu" work without one.'


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs, and with how many threads. Each of several GPUs gets a copy of the model and all workers."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    device_index: tuple[int, ...] = (0,)
    compute_type: str = "default"
    workers: int | None = 1  # None: one for each core, or GPU_WORKERS for each GPU
    intra_threads: int = 1

    def __post_init__(self) -> None:
        # The library accepts 0 and then hangs.
        if (self.workers is not None and self.workers < 1) or self.intra_threads < 1 or not self.device_index:
            raise ValueError("A model needs at least one worker, one thread and one device.")


def count_cores() -> int:
    """Return how many cores this process may use, in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_placement(placement: Placement) -> None:
    """Raise ValueError for a device that this machine lacks, or a compute type that none of its devices supports."""
    import ctranslate2

    cards = 0 if placement.device == "cpu" else ctranslate2.get_cuda_device_count()
    if placement.device == "cuda" and not cards:
        raise ValueError(NO_GPU)
    if placement.device == "cuda" and max(placement.device_index) >= cards:
        raise ValueError(f"device_index is {max(placement.device_index)}, but the last GPU is {cards - 1}.")
    types: set[str] = set() if placement.device == "cuda" else ctranslate2.get_supported_compute_types("cpu")
    if cards:
        types = types.union(*(ctranslate2.get_supported_compute_types("cuda", card) for card in range(cards)))
    _check_compute_type(placement.compute_type, types)


def load_generator(path: Path, vocabulary: Sequence[str], placement: Placement) -> Any:
    """Return a loaded `ctranslate2.Generator` that has generated one token. Raises OSError when it cannot run there.

    Its `num_generators` is the number of batches that it can run at once.
    """
    import ctranslate2

    cards = 0 if placement.device == "cpu" else ctranslate2.get_cuda_device_count()
    if cards:
        try:
            return _load_on_cuda(path, vocabulary, placement)
        except OSError as error:
            if placement.device == "cuda":
                raise
            log.warning("gpu.unusable", error=short_message(error))
    elif placement.device == "cuda":
        raise OSError(NO_GPU)
    return _load(path, vocabulary, placement, "cpu", placement.compute_type)


def preload_cublas() -> bool:
    """Open cuBLAS 12 from its wheel or from the system's library path; return whether it was found."""
    for folder in [*_wheel_folders(), Path()]:
        try:
            for library in CUBLAS:
                ctypes.CDLL(str(folder / library), ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def _check_compute_type(compute_type: str, supported: Collection[str]) -> None:
    if compute_type not in PORTABLE_TYPES and compute_type not in supported:
        types = ", ".join(sorted(supported))
        raise ValueError(f"compute_type is '{compute_type}'; this machine supports {types}, or default.")


def _wheel_folders() -> list[Path]:
    try:
        wheel = find_spec("nvidia.cublas")
    except ModuleNotFoundError:
        return []
    return [Path(folder) / "lib" for folder in (wheel and wheel.submodule_search_locations) or []]


def _load_on_cuda(path: Path, vocabulary: Sequence[str], placement: Placement) -> Any:
    import ctranslate2

    if not preload_cublas():
        raise OSError(NO_CUBLAS)
    if placement.compute_type != "default":
        return _load(path, vocabulary, placement, "cuda", placement.compute_type)
    try:
        each = [ctranslate2.get_supported_compute_types("cuda", index) for index in placement.device_index]
    except (RuntimeError, ValueError) as error:
        indexes = ", ".join(map(str, placement.device_index))
        raise OSError(f"GPU {indexes} cannot be used: {error}") from error
    supported = set.intersection(*map(set, each))
    return _load(path, vocabulary, placement, "cuda", next(kind for kind in PREFERRED_ON_CUDA if kind in supported))


def _load(path: Path, vocabulary: Sequence[str], placement: Placement, device: str, compute_type: str) -> Any:
    import ctranslate2

    workers = placement.workers or (GPU_WORKERS if device == "cuda" else count_cores())
    try:
        generator = ctranslate2.Generator(
            str(path), device=device, device_index=list(placement.device_index) if device == "cuda" else 0,
            compute_type=compute_type, inter_threads=workers, intra_threads=placement.intra_threads,
            max_queued_batches=-1,  # by default a submission blocks when the queue is full
        )  # fmt: skip
        # Faults of a driver or its libraries show at the first multiplication, not while loading.
        generator.generate_batch([list(vocabulary[:2])], max_length=1, include_prompt_in_result=False)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise OSError(f"The model in {path} cannot be loaded on {device} as {compute_type}: {error}") from error
    return generator
