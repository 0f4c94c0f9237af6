"""Trains the demo model or tests it: `python -m backends.training train --out DIR`, `... evaluate DIR`."""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m backends.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train from nothing; needs the `train` extra")
    training.add_argument("--minutes", type=float, default=60, help="how long the loop runs (default: 60)")
    training.add_argument("--seed", type=int, default=7, help="decides text and first weights (default: 7)")
    training.add_argument(
        "--resume", action="store_true", help="go on from what an earlier run left in OUT and OUT.npz"
    )
    training.add_argument(
        "--peak", type=float, default=1.0, help="share of the full rate from which it falls to nothing (default: 1)"
    )
    training.add_argument("--out", type=Path, required=True, help="the model's directory")
    evaluation = commands.add_parser("evaluate", help="print how much of fresh samples the model gets exactly right")
    evaluation.add_argument("model", type=Path, help="the model's directory")
    evaluation.add_argument("--samples", type=int, default=200, help="per subject (default: 200)")
    evaluation.add_argument("--served", action="store_true", help="ask through the backend, as callers do")
    evaluation.add_argument("--failures", type=int, default=0, help="print this many wrong answers per subject")
    options = parser.parse_args()
    if options.command == "train":
        from backends.training.train import Plan, train

        train(Plan(options.minutes, options.seed, options.out, options.resume, options.peak))
    else:
        from backends.training.evaluate import evaluate

        evaluate(options.model, options.samples, options.failures, served=options.served)


if __name__ == "__main__":
    main()
