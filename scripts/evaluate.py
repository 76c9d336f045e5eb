"""Measures image-text retrieval of a trained model and writes the numbers with all that is needed to trust them.

    python scripts/evaluate.py --model runs/quickstart                             # the data it was trained on
    python scripts/evaluate.py --model org/vse-hardnce --dataset coco --data_dir DIR --output metrics.json
    accelerate launch --num_processes 8 scripts/evaluate.py --model DIR ...        # every process encodes a share

The model is a folder or a Hub id; its own code is not run, the installed package is. COCO's 5,000 test images are
reported under both protocols, 5K and the mean of five folds of 1,000.
"""

import argparse
import json
import logging
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--dataset", help="scenes, coco, flickr30k, flickr8k, ... ; default: as in training")
    parser.add_argument("--data_dir", help="folder with the images and the captions file; default: as in training")
    parser.add_argument("--split_file", help="Karpathy's split JSON, where it is not in data_dir")
    parser.add_argument("--features", help="array that takes the place of the images; default: as in training")
    parser.add_argument("--image_column", help="column of the images, where its name does not tell")
    parser.add_argument("--caption_column", help="column of the captions, where its name does not tell")
    parser.add_argument("--split", default="test", help="train, validation or test [test]")
    parser.add_argument("--batch_size", type=int, default=128, help="images or sentences encoded at once [128]")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode images [0]")
    parser.add_argument("--output", type=Path, help="JSON file to write [metrics_SPLIT.json in the model's folder]")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from hf_vse.errors import one_line_errors
    from hf_vse.evaluation.run import evaluate_model

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    options = vars(arguments)
    with one_line_errors():
        result, table = evaluate_model(**{name: value for name, value in options.items() if name != "output"})
    if result is None:  # not the main process
        return
    output = arguments.output or Path(arguments.model if Path(arguments.model).is_dir() else ".").joinpath(
        f"metrics_{arguments.split}.json"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"{table}\n\nnumbers   {output}")


if __name__ == "__main__":
    main()
