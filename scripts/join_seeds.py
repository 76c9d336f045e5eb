"""Joins runs that differ in seed alone to one model: more recall for longer vectors.

    for seed in 0 1 2; do python scripts/train.py RECIPE --data_dir DIR --seed $seed --output_dir runs/part-$seed; done
    python scripts/join_seeds.py runs/part-0 runs/part-1 runs/part-2 --output_dir runs/joined
    python scripts/evaluate.py --model runs/joined --dataset flickr8k --data_dir DIR

Both towers must have been frozen. The vectors are as long as those of all runs together. The field `joined_seeds` of a
recipe trains the seeds and joins them in one run.
"""

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of the runs")
    parser.add_argument("--output_dir", required=True, help="a new or empty folder")
    arguments = parser.parse_args()
    from hf_vse.embed.adapters.own_models import load_vse_model, load_vse_processor
    from hf_vse.errors import one_line_errors
    from hf_vse.hub.export import check_new_folder
    from hf_vse.training.joining import joined_models

    with one_line_errors():
        folder = check_new_folder(arguments.output_dir)
        model = joined_models([load_vse_model(name) for name in arguments.models], arguments.models)
        model.save_pretrained(folder)
        load_vse_processor(arguments.models[0]).save_pretrained(folder)
    print(f"{folder}: {len(arguments.models)} runs as one model with vectors of {model.config.projection_dim} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
