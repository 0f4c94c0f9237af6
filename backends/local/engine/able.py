"""What can be said of a placement without loading a model: whether this machine has such a device and can calculate so.

Source: https://opennmt.net/CTranslate2/quantization.html, https://opennmt.net/CTranslate2/hardware_support.html
"""

from collections.abc import Collection

from backends.local.engine.device import Placement

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
