"""Puts a model on the graphics card where there is one that works, else on the processor.

Source: https://opennmt.net/CTranslate2/quantization.html, https://opennmt.net/CTranslate2/hardware_support.html
"""

import ctypes
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import structlog

from backends.local.model import Model

log = structlog.get_logger()

# What the engine opens by name at its first multiplication; opened here by path, it needs no LD_LIBRARY_PATH.
CUBLAS = ("libcublasLt.so.12", "libcublas.so.12")
# On a graphics card, in this order, when nothing is asked for: of the types that the card has.
PREFERRED_ON_CUDA = ("bfloat16", "float16", "int8_float16", "int8", "float32")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is to run, and with how many threads."""

    device: Literal["auto", "cpu", "cuda"]
    device_index: int
    compute_type: str
    workers: int
    intra_threads: int


def place(model: Model, wanted: Placement) -> Any:
    """Load the model: a `ctranslate2.Generator` that has made one token. Raises OSError when it cannot run there."""
    import ctranslate2

    cards = 0 if wanted.device == "cpu" else ctranslate2.get_cuda_device_count()
    if cards:
        try:
            return _on_cuda(model, wanted)
        except OSError as error:
            if wanted.device == "cuda":
                raise
            log.warning("local.cuda_failed", error=str(error))
    elif wanted.device == "cuda":
        raise OSError(
            'device is "cuda", but there is no graphics card, or no driver for it; "auto" and "cpu" need none.'
        )
    return _loaded(model, wanted, "cpu", wanted.compute_type)


def preload_cublas() -> bool:
    """Open cuBLAS 12 from its wheel or from where the system keeps it; False when it is in neither place."""
    for folder in [*_wheel_folders(), Path()]:
        try:
            for library in CUBLAS:
                ctypes.CDLL(str(folder / library), ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def _wheel_folders() -> list[Path]:
    try:
        wheel = find_spec("nvidia.cublas")
    except ModuleNotFoundError:
        return []
    return [Path(folder) / "lib" for folder in (wheel and wheel.submodule_search_locations) or []]


def _on_cuda(model: Model, wanted: Placement) -> Any:
    import ctranslate2

    if not preload_cublas():
        raise OSError('A graphics card takes cuBLAS 12, which is not there: pip install "headgate[cuda]".')
    if wanted.compute_type != "default":
        return _loaded(model, wanted, "cuda", wanted.compute_type)
    try:
        supported = ctranslate2.get_supported_compute_types("cuda", wanted.device_index)
    except (RuntimeError, ValueError) as error:
        raise OSError(f"Graphics card {wanted.device_index} cannot be used: {error}") from error
    return _loaded(model, wanted, "cuda", next(each for each in PREFERRED_ON_CUDA if each in supported))


def _loaded(model: Model, wanted: Placement, device: str, compute_type: str) -> Any:
    import ctranslate2

    try:
        generator = ctranslate2.Generator(
            str(model.path), device=device, device_index=wanted.device_index if device == "cuda" else 0,
            compute_type=compute_type, inter_threads=wanted.workers, intra_threads=wanted.intra_threads,
            max_queued_batches=-1,  # the default blocks whoever submits one batch too many
        )  # fmt: skip
        # Faults of a driver or of its libraries show at the first multiplication, not at loading.
        generator.generate_batch([model.vocabulary[:2]], max_length=1, include_prompt_in_result=False)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise OSError(f"The model in {model.path} cannot be loaded on {device} as {compute_type}: {error}") from error
    return generator
