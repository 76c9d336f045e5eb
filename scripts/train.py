"""Trains an image-text dual encoder from a recipe: `hf-vse train` as a script for `accelerate launch`.

    accelerate launch scripts/train.py                                             # the built-in scenes
    accelerate launch scripts/train.py scripts/recipes/flickr8k_features_hardnce.yaml --data_dir DIR
    accelerate launch --num_processes 8 scripts/train.py RECIPE --bf16 true        # one process per GPU

`--fields` lists the fields. Run the same command again to resume an interrupted run.
"""

import sys

from hf_vse.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
