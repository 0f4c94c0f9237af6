"""Turns a checkpoint of Hugging Face's transformers into a model folder that is proven to give the same answers.

checkpoint.py   what is read from its files, and why some are refused: needs no torch
original.py     the model itself, in torch, and its description for CTranslate2, corrected
proof.py        compares what both say, before numbers are made small
folder.py       what stands beside the weights: needs no torch

Nothing is downloaded, nothing is unpickled, no code of the checkpoint is run. It takes about 8 bytes of memory and 4 of
disk for each parameter, for a while, because both are compared in 32 bits.
Source: https://opennmt.net/CTranslate2/guides/transformers.html
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from backends.local.conversion.checkpoint import Checkpoint, read_checkpoint
from backends.local.conversion.folder import write_beside
from backends.local.conversion.proof import compare
from backends.local.model import read_model

QUANTIZATIONS = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")

Say = Callable[[str], None]


def convert(source: Path, out: Path, *, quantization: str, force: bool, say: Say) -> None:
    """Write the model folder `out`, whole or not at all.

    Raises ValueError or OSError for what cannot be converted, ModuleNotFoundError without the extra, ArithmeticError
    when the converted model does not say what the original says.
    """
    refuse_place(source, out, force=force)
    checkpoint = read_checkpoint(source)
    say(f"read       {checkpoint}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        made = Path(folder) / "made"
        _make(checkpoint, made, Path(folder) / "float32", quantization, say)
        if out.exists():
            out.rename(Path(folder) / "replaced")
        made.rename(out)
    say(f"written    {out}")


def refuse_place(source: Path, out: Path, *, force: bool) -> None:
    """Raises ValueError unless a folder can be put there and nothing is lost that is no model."""
    if source.resolve() == out.resolve() or out.resolve() in source.resolve().parents:
        raise ValueError(f"{out} holds the checkpoint itself; give another folder.")
    if not out.exists():
        return
    if not out.is_dir() or out.is_symlink():
        raise ValueError(f"{out} is not a folder.")
    if any(out.iterdir()):
        if not force:
            raise ValueError(f"{out} is not empty; --force replaces the model in it.")
        if not (out / "model.bin").is_file():
            raise ValueError(f"{out} is not empty and holds no model.bin; only a model is replaced.")


def _make(checkpoint: Checkpoint, made: Path, exact: Path, quantization: str, say: Say) -> None:
    from backends.local.conversion.original import Original

    original = Original(checkpoint)
    say(f"loaded     {original.parameters:,} parameters")
    original.save(exact)
    proof = compare(original.said, exact)
    say(f"compared   {proof}")
    shutil.rmtree(exact)
    original.shrink(quantization)
    original.save(made)
    write_beside(checkpoint, made)
    model = read_model(made)
    say(f"stored     as {quantization}, {model.weights.bytes / 1e6:,.1f} MB")
