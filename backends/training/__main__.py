"""Trains or evaluates the demo model: `python -m backends.training train --out DIR`, `... evaluate DIR`."""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m backends.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train from random weights; needs the `train` extra")
    training.add_argument("--minutes", type=float, default=60, help="how long to train (default: 60)")
    training.add_argument(
        "--seed", type=int, default=7, help="seed of the training text and the first weights (default: 7)"
    )
    training.add_argument(
        "--resume", action="store_true", help="continue from the tokenizer in OUT and the weights in OUT.npz"
    )
    training.add_argument(
        "--peak", type=float, default=1.0, help="highest learning rate, as a share of the full rate (default: 1)"
    )
    training.add_argument("--out", type=Path, required=True, help="the folder to write the model to")
    evaluation = commands.add_parser("evaluate", help="print the share of new samples that the model answers exactly")
    evaluation.add_argument("model", type=Path, help="the folder of the model")
    evaluation.add_argument("--samples", type=int, default=200, help="per subject (default: 200)")
    evaluation.add_argument(
        "--served", action="store_true", help="send requests through the local backend, as callers do"
    )
    evaluation.add_argument("--failures", type=int, default=0, help="wrong answers to print per subject (default: 0)")
    options = parser.parse_args()
    if options.command == "train":
        from backends.training.train import TrainingPlan, train

        train(TrainingPlan(options.minutes, options.seed, options.out, options.resume, options.peak))
    else:
        from backends.training.evaluate import evaluate

        evaluate(options.model, options.samples, options.failures, served=options.served)


if __name__ == "__main__":
    main()
