"""Puts a model on the graphics card where there is one that works, else on the processor.

Source: https://opennmt.net/CTranslate2/quantization.html, https://opennmt.net/CTranslate2/hardware_support.html
"""

import ctypes
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import structlog

log = structlog.get_logger()

# What the engine opens by name at its first multiplication; opened here by path, it needs no LD_LIBRARY_PATH.
CUBLAS = ("libcublasLt.so.12", "libcublas.so.12")
# On a graphics card, in this order, when nothing is asked for: of the types that the card has.
PREFERRED_ON_CUDA = ("bfloat16", "float16", "int8_float16", "int8", "float32")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is to run, and with how many threads. Of several graphics cards each gets a copy and workers."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    device_index: tuple[int, ...] = (0,)
    compute_type: str = "default"
    workers: int = 1
    intra_threads: int = 1

    def __post_init__(self) -> None:
        # The library takes 0 of them, and then waits for ever.
        if self.workers < 1 or self.intra_threads < 1 or not self.device_index:
            raise ValueError("a model needs at least one worker, one thread and one device")


def place(path: Path, vocabulary: Sequence[str], wanted: Placement) -> Any:
    """Load the model: a `ctranslate2.Generator` that has made one token. Raises OSError when it cannot run there.

    Its `num_generators` says how many batches it runs at once.
    """
    import ctranslate2

    cards = 0 if wanted.device == "cpu" else ctranslate2.get_cuda_device_count()
    if cards:
        try:
            return _on_cuda(path, vocabulary, wanted)
        except OSError as error:
            if wanted.device == "cuda":
                raise
            log.warning("local.cuda_failed", error=str(error))
    elif wanted.device == "cuda":
        raise OSError(
            'device is "cuda", but there is no graphics card, or no driver for it; "auto" and "cpu" need none.'
        )
    return _loaded(path, vocabulary, wanted, "cpu", wanted.compute_type)


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


def _on_cuda(path: Path, vocabulary: Sequence[str], wanted: Placement) -> Any:
    import ctranslate2

    if not preload_cublas():
        raise OSError('A graphics card takes cuBLAS 12, which is not there: pip install "headgate[cuda]".')
    if wanted.compute_type != "default":
        return _loaded(path, vocabulary, wanted, "cuda", wanted.compute_type)
    try:
        each = [ctranslate2.get_supported_compute_types("cuda", index) for index in wanted.device_index]
    except (RuntimeError, ValueError) as error:
        raise OSError(f"Graphics card {_named(wanted.device_index)} cannot be used: {error}") from error
    supported = set.intersection(*map(set, each))
    return _loaded(path, vocabulary, wanted, "cuda", next(kind for kind in PREFERRED_ON_CUDA if kind in supported))


def _loaded(path: Path, vocabulary: Sequence[str], wanted: Placement, device: str, compute_type: str) -> Any:
    import ctranslate2

    try:
        generator = ctranslate2.Generator(
            str(path), device=device, device_index=list(wanted.device_index) if device == "cuda" else 0,
            compute_type=compute_type, inter_threads=wanted.workers, intra_threads=wanted.intra_threads,
            max_queued_batches=-1,  # the default blocks whoever submits one batch too many
        )  # fmt: skip
        # Faults of a driver or of its libraries show at the first multiplication, not at loading.
        generator.generate_batch([list(vocabulary[:2])], max_length=1, include_prompt_in_result=False)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise OSError(f"The model in {path} cannot be loaded on {device} as {compute_type}: {error}") from error
    return generator


def _named(indexes: Sequence[int]) -> str:
    return ", ".join(map(str, indexes))


# For what the machine has; what it is, the engine chooses.
CHOSEN = frozenset({"default", "auto"})


def refuse(wanted: Placement) -> None:
    """Raises ValueError for a device that is not there, and for a way to calculate that none of them has."""
    import ctranslate2

    cards = 0 if wanted.device == "cpu" else ctranslate2.get_cuda_device_count()
    if wanted.device == "cuda" and not cards:
        raise ValueError(
            'device is "cuda", but there is no graphics card, or no driver for it; "auto" and "cpu" need none.'
        )
    if wanted.device == "cuda" and max(wanted.device_index) >= cards:
        raise ValueError(f"device_index is {max(wanted.device_index)}, but the last graphics card is {cards - 1}.")
    able: set[str] = set() if wanted.device == "cuda" else ctranslate2.get_supported_compute_types("cpu")
    if cards:
        able = able.union(*(ctranslate2.get_supported_compute_types("cuda", card) for card in range(cards)))
    _refuse_type(wanted.compute_type, able)


def _refuse_type(compute_type: str, able: Collection[str]) -> None:
    if compute_type not in CHOSEN and compute_type not in able:
        raise ValueError(f"compute_type is '{compute_type}'; this machine has {', '.join(sorted(able))}, or default.")
