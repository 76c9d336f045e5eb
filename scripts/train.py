"""Trains an image-text dual encoder as a recipe says.

    accelerate launch scripts/train.py                                             # the built-in scenes
    accelerate launch scripts/train.py scripts/recipes/flickr8k_features_hardnce.yaml --data_dir DIR
    accelerate launch --num_processes 8 scripts/train.py RECIPE --bf16 true        # one process for each GPU

`--help` lists the fields; the same command again continues an interrupted run.
"""

import logging
import os
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parent / "recipes" / "quickstart.yaml"


def main() -> None:
    from hf_vse.errors import one_line_errors
    from hf_vse.training.recipe import parse_command_line
    from hf_vse.training.run import run_recipe

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    first = os.environ.get("RANK", "0") == "0"
    logging.getLogger("hf_vse").setLevel(logging.INFO if first else logging.ERROR)
    with one_line_errors():
        run_recipe(parse_command_line(sys.argv[1:], QUICKSTART))


if __name__ == "__main__":
    main()
