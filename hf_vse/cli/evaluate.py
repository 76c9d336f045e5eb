"""`hf-vse evaluate`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from hf_vse.cli.command import Result, add_data_options, command_parser, data_options

DESCRIPTION = """Measures image-text retrieval of a model and writes the numbers with all that is needed to trust them.
The model's own code is not run, the installed package is. COCO's 5,000 test images are reported under both
protocols, 5K and the mean of five folds of 1,000."""
EXAMPLES = """
  hf-vse evaluate runs/quickstart                                   the data it was trained on
  hf-vse evaluate org/vse-hardnce --dataset coco --data_dir DIR --output metrics.json
  hf-vse evaluate DIR --split validation --json | jq .metrics.rsum
  accelerate launch --num_processes 8 -m hf_vse.cli evaluate DIR    every process encodes a share"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("evaluate", DESCRIPTION, EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="model", help="model folder or Hub id")
    parser.add_argument("--model", help="the same")
    add_data_options(parser, None, "; default: as in training")
    parser.add_argument("--split", default="test", help="train, validation or test [test]")
    parser.add_argument("--batch_size", type=int, default=128, help="images or sentences encoded at once [128]")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode images [0]")
    parser.add_argument("--output", type=Path, help="JSON file to write [metrics_SPLIT.json in the model's folder]")
    arguments = parser.parse_args(argv)
    if (arguments.name is None) == (arguments.model is None):
        parser.error("give one model: a folder or a Hub id")
    arguments.model = arguments.model or arguments.name
    return arguments


def run(arguments: argparse.Namespace) -> Result | None:
    from hf_vse.evaluation.run import evaluate_model

    record, table = evaluate_model(
        arguments.model,
        arguments.dataset,
        arguments.split,
        arguments.batch_size,
        arguments.num_workers,
        not arguments.quiet,
        **data_options(arguments),
    )
    if record is None:  # not the main process
        return None
    folder = Path(arguments.model if Path(arguments.model).is_dir() else ".")
    output = arguments.output or folder / f"metrics_{arguments.split}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return Result(record, f"{table}\n\nnumbers   {output}")
