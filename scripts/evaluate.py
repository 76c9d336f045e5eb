"""Measures image-text retrieval of a trained model: `hf-vse evaluate` as a script for `accelerate launch`.

python scripts/evaluate.py --model runs/quickstart                             # the data it was trained on
python scripts/evaluate.py --model org/vse-hardnce --dataset coco --data_dir DIR --output metrics.json
accelerate launch --num_processes 8 scripts/evaluate.py --model DIR ...        # each process encodes a share
"""

import sys

from hf_vse.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
