"""Converts a checkpoint of Hugging Face's transformers into a model folder that is verified to give the same answers.

checkpoint.py        what is read from its files, and why some are refused: needs no torch
source_model.py      the model itself, in torch, and its corrected specification for CTranslate2
verification.py      compares the logits of both before quantization
companion_files.py   the files beside the weights: needs no torch

Nothing is downloaded, nothing is unpickled, no code of the checkpoint is run. While both models are compared in 32
bits, conversion takes about 8 bytes of memory and 4 bytes of disk for each parameter.
Source: https://opennmt.net/CTranslate2/guides/transformers.html
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from backends.local.conversion.checkpoint import Checkpoint, read_checkpoint
from backends.local.conversion.companion_files import write_companion_files
from backends.local.conversion.verification import verify_conversion
from backends.local.model import read_model

QUANTIZATIONS = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")

Print = Callable[[str], None]


def convert(source: Path, out: Path, *, quantization: str, force: bool, print_line: Print) -> None:
    """Write the model folder `out`, completely or not at all.

    Raises ValueError or OSError for what cannot be converted, ModuleNotFoundError without the extra, ArithmeticError
    when the converted model would answer differently from the original.
    """
    check_destination(source, out, force=force)
    checkpoint = read_checkpoint(source)
    print_line(f"read       {checkpoint}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        converted = Path(folder) / "converted"
        _convert(checkpoint, converted, Path(folder) / "float32", quantization, print_line)
        if out.exists():
            out.rename(Path(folder) / "replaced")
        converted.rename(out)
    print_line(f"written    {out}")


def check_destination(source: Path, out: Path, *, force: bool) -> None:
    """Raises ValueError unless `out` is free, or a model that may be replaced."""
    if source.resolve() == out.resolve() or out.resolve() in source.resolve().parents:
        raise ValueError(f"{out} contains the checkpoint itself; give another folder.")
    if not out.exists():
        return
    if not out.is_dir() or out.is_symlink():
        raise ValueError(f"{out} is not a folder.")
    if any(out.iterdir()):
        if not force:
            raise ValueError(f"{out} is not empty; --force replaces the model in it.")
        if not (out / "model.bin").is_file():
            raise ValueError(f"{out} is not empty and has no model.bin; only a model is replaced.")


def _convert(checkpoint: Checkpoint, out: Path, exact: Path, quantization: str, print_line: Print) -> None:
    """Write the model to `out`; it is written to `exact` first, in 32 bits, for the comparison."""
    from backends.local.conversion.source_model import SourceModel

    source = SourceModel(checkpoint)
    print_line(f"loaded     {source.parameters:,} parameters")
    source.save(exact)
    deviations = verify_conversion(source.reference, exact)
    print_line(f"compared   {deviations}")
    shutil.rmtree(exact)
    source.quantize(quantization)
    source.save(out)
    write_companion_files(checkpoint, out)
    model = read_model(out)
    print_line(f"stored     as {quantization}, {model.weights.size_bytes / 1e6:,.1f} MB")
