"""Epochs per hour of a frozen stage: running the tower in every step, or caching its outputs.

    python scripts/benchmarks/frozen_cache.py --data_dir DIR --image_tower_weights FILE [--output frozen_cache.json]

Times some steps of the first stage of `flickr8k_pixels.yaml` both ways, and the computation of the cache on some of
the images; the time of an epoch is scaled up from these. Needs the extra `timm`.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from datasets import Dataset
from measuring import record
from transformers import TrainerCallback

from hf_vse.evaluation.environment import environment
from hf_vse.training.build import build_model, build_processor, load_splits
from hf_vse.training.frozen import cache_frozen_towers
from hf_vse.training.recipe import Recipe, read_recipe
from hf_vse.training.run import training_arguments
from hf_vse.training.trainer import VSETrainer

RECIPE = Path(__file__).parents[1] / "recipes" / "flickr8k_pixels.yaml"


class StepTimes(TrainerCallback):
    def __init__(self):
        self.ends = [time.perf_counter()]

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Median seconds per step, without the first two steps."""
        return median(end - start for start, end in zip(self.ends[2:], self.ends[3:], strict=False))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder with Flickr8k's photographs and captions file")
    parser.add_argument("--image_tower_weights", help="safetensors file of tf_efficientnet_lite2; default: the Hub")
    parser.add_argument("--steps", type=int, default=10, help="timed steps that run the tower [10]")
    parser.add_argument("--images", type=int, default=1024, help="images for which the cache is timed [1024]")
    parser.add_argument("--crops", type=int, default=0, help="random crops per image in the cache [0]")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images [0]")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, recipe: Recipe, train: Dataset, folder: str) -> dict[str, float]:
    """Seconds of each part for all of `train`, scaled up from `--images` of its images."""
    values = {"eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1000}
    values |= {"frozen_cache_dir": folder, "cached_crops": arguments.crops, "warmup_steps": 0}
    stage = recipe.stage(recipe.stages[0] | values | {"dataloader_num_workers": arguments.workers})
    processor = build_processor(stage.model, train)
    model = build_model(stage.model, processor, train)
    some = {"train": train.select(range(min(arguments.images, len(train))))}
    pairs = sum(len(captions) for captions in train["captions"][:])
    seconds = {}
    for cached, steps in ((True, 10 * arguments.steps), (False, arguments.steps)):
        args = training_arguments(
            recipe.stage(stage.values | {"max_steps": steps, "cache_frozen": cached}), Path(folder)
        )
        start = time.perf_counter()
        read = cache_frozen_towers(model, processor, some, args)["train"]
        if cached:
            seconds["cache"] = (time.perf_counter() - start) * len(train) / len(some["train"])
            start = time.perf_counter()
            cache_frozen_towers(model, processor, some, args)
            seconds["cache found again"] = time.perf_counter() - start
        trainer = VSETrainer(model, args, train_dataset=read, processing_class=processor)
        times = StepTimes()
        trainer.add_callback(times)
        trainer.train()
        of_epoch = times.seconds * pairs / args.per_device_train_batch_size
        seconds["epoch on the cache" if cached else "epoch with the tower"] = of_epoch
    return seconds


def main() -> None:
    arguments = parse_arguments()
    where = environment()
    weights = {"image_tower_weights": arguments.image_tower_weights} if arguments.image_tower_weights else {}
    recipe = read_recipe(RECIPE, data_dir=arguments.data_dir, check_images=False, **weights)
    train = load_splits(recipe.data)["train"]
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(arguments, recipe, train, folder)
    result = {
        "what": "frozen stage of flickr8k_pixels.yaml; seconds for the whole training split, extrapolated",
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "epochs_per_hour": {name: round(3600 / value, 1) for name, value in seconds.items() if "epoch" in name},
        "images_timed": min(arguments.images, len(train)),
        "crops": arguments.crops,
        "environment": where,
    }
    record(result, arguments.output)


if __name__ == "__main__":
    main()
