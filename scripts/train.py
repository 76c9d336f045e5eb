"""Trains an image-text dual encoder as a recipe says: `hf-vse train`, in the form that `accelerate launch` takes.

    accelerate launch scripts/train.py                                             # the built-in scenes
    accelerate launch scripts/train.py scripts/recipes/flickr8k_features_hardnce.yaml --data_dir DIR
    accelerate launch --num_processes 8 scripts/train.py RECIPE --bf16 true        # one process for each GPU

`--fields` lists the fields; the same command again continues an interrupted run.
"""

import sys

from hf_vse.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
