"""`headgate model convert` and `headgate model check`: prepare and check a model folder."""

import argparse
import sys
from pathlib import Path
from typing import Any

EXIT_OK, EXIT_FAILED, EXIT_INVALID_INPUT = 0, 1, 2
QUANTIZATIONS = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")


def add_to(commands: Any) -> None:
    """Add the `model` commands to a parser."""
    model = commands.add_parser("model", help="local models: convert, check")
    verbs = model.add_subparsers(required=True, metavar="convert | check")
    convert = verbs.add_parser("convert", help="convert a checkpoint of transformers to a model folder",
                               epilog="example: headgate model convert Qwen2.5-0.5B-Instruct models/qwen")  # fmt: skip
    convert.add_argument("source", type=Path, metavar="HF_DIR", help="a folder with config.json and .safetensors")
    convert.add_argument(
        "out", type=Path, metavar="OUT", help="the folder to write; it is written completely or not at all"
    )
    convert.add_argument("--quantization", choices=QUANTIZATIONS, default="int8", help="default: int8")
    convert.add_argument("--force", action="store_true", help="replace the model in OUT")
    convert.set_defaults(run=_convert)
    check = verbs.add_parser("check", help="load a model folder and print its properties",
                             epilog="example: headgate model check models/qwen")  # fmt: skip
    check.add_argument("folder", type=Path, metavar="DIR")
    check.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    check.set_defaults(run=_check)


def _convert(options: argparse.Namespace) -> int:
    from backends.local.conversion import convert

    try:
        convert(
            options.source, options.out, quantization=options.quantization, force=options.force, print_line=_print_line
        )
    except ArithmeticError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return EXIT_INVALID_INPUT
    return EXIT_OK


def _check(options: argparse.Namespace) -> int:
    from backends.local.model_report import describe_model

    try:
        for name, value in describe_model(options.folder, options.device):
            _print_line(f"{name:<16}{value}")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _print_line(line: str) -> None:
    print(line, flush=True)
