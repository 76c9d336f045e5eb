"""Near-duplicate photographs: what the hashes find, and how far recall is too good where a burst is torn apart.

    python scripts/benchmarks/near_duplicates.py --data_dir FLICKR8K [--output near_duplicates.json]

Two parts, both on photographs of Flickr8k:

- `hashes`: the share of changed copies that is found, and how many pairs of photographs are taken for near-duplicates;
  a few are near-duplicates. The threshold was chosen on the first 3,000 files by name; these are the others.
- `training`: a folder of photographs as users have it, with bursts of four (a crop, a smaller one and a brighter one
  beside each photograph, the five captions divided among them). A small model learns from thumbnails, with a tenth
  held out, once without and once with groups. `validation` is what is held out, `test` are other photographs, with as
  many bursts. What validation promises beyond test is the inflation.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import PIL.Image
import torch
from datasets import Dataset
from measuring import record
from PIL.ImageEnhance import Brightness, Contrast

from hf_vse.data.decoding import decode_image
from hf_vse.data.features import features_dataset
from hf_vse.data.groups import group_counts, near_pairs, plain_column, with_group_ids
from hf_vse.data.image_hashes import LENGTH, NEAR, UNIT, image_hash
from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, GROUP_ID, IMAGE, IMAGE_ID
from hf_vse.data.sources import load_pairs
from hf_vse.data.spec import DataSpec
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.evaluator import evaluate_retrieval
from hf_vse.training.build import build_model, build_processor
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import training_arguments
from hf_vse.training.trainer import VSETrainer

Picture = PIL.Image.Image
CHOSEN_ON = 3000  # photographs on which the threshold was chosen
SIDE = 96  # pixels, for training
RECIPE = {
    "text_config": {"word_dim": 64, "hidden_size": 128}, "projection_dim": 128, "projection_type": "mlp",
    "loss_type": "nce", "temperature": 0.07, "min_word_count": 2, "num_train_epochs": 15, "learning_rate": 1e-3,
    "per_device_train_batch_size": 128, "eval_strategy": "no", "save_strategy": "no", "diagnostics_steps": 0,
    "disable_tqdm": True,
}  # fmt: skip
KEPT = ("i2t_r1", "i2t_r10", "t2i_r1", "t2i_r10", "rsum")


def encoded(image: Picture, quality: int) -> Picture:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return PIL.Image.open(file).convert("RGB")


def cropped(image: Picture, share: float, rng: np.random.Generator) -> Picture:
    width, height = round(image.width * share), round(image.height * share)
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


CHANGES: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "JPEG quality 30": lambda image, _: encoded(image, 30),
    "0.3 of the side": lambda image, _: image.resize((image.width * 3 // 10, image.height * 3 // 10)),
    "brighter, more contrast": lambda image, _: Contrast(Brightness(image).enhance(1.25)).enhance(1.2),
    "crop 0.95": lambda image, rng: cropped(image, 0.95, rng),
    "crop 0.9": lambda image, rng: cropped(image, 0.9, rng),
    "crop 0.85": lambda image, rng: cropped(image, 0.85, rng),
    "crop 0.93, brighter, JPEG": lambda image, rng: encoded(Brightness(cropped(image, 0.93, rng)).enhance(1.08), 70),
}


def measure_hashes(photographs: list[Picture], changed: int) -> dict:
    rng = np.random.default_rng(0)
    start = time.process_time()
    hashes = np.stack([image_hash(each) for each in photographs])
    milliseconds = 1000 * (time.process_time() - start) / len(hashes)
    pairs = sum(map(len, near_pairs(hashes, NEAR)))
    found = {}
    for name, change in CHANGES.items():
        copies = np.stack([image_hash(change(each, rng)) for each in photographs[:changed]]).astype(int)
        found[name] = round(100 * float((((copies - hashes[:changed]) ** 2).sum(1) <= NEAR).mean()), 1)
    many = rng.integers(-30, 31, size=(20_000, LENGTH)).astype(np.int8)
    start = time.process_time()
    sum(map(len, near_pairs(many, NEAR)))
    return {
        "threshold": round(NEAR / UNIT**2, 3), "photographs": len(hashes), "near_pairs": pairs,
        "near_pairs_per_million": round(2e6 * pairs / (len(hashes) * (len(hashes) - 1)), 2),
        "found_percent": found, "copies_of_each_kind": changed, "cpu_milliseconds_per_hash": round(milliseconds, 2),
        "cpu_seconds_search_20000": round(time.process_time() - start, 1),
    }  # fmt: skip


def write_folder(folder: Path, photographs: list[Picture], captions: list[list[str]]) -> None:
    """Every second photograph becomes a burst; its captions are divided among the four images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    lines = []
    for number, (image, of_image) in enumerate(zip(photographs, captions, strict=True)):
        images, words = [image], [of_image]
        if number % 2:
            smaller = image.resize((image.width * 2 // 3, image.height * 2 // 3))
            brighter = encoded(Brightness(cropped(image, 0.95, rng)).enhance(1.08), 70)
            images += [cropped(image, 0.93, rng), smaller, brighter]
            words = [of_image[:2], of_image[2:3], of_image[3:4], of_image[4:]]
        for place, (each, own) in enumerate(zip(images, words, strict=True)):
            name = f"{number:05}_{place}.jpg"
            each.save(folder / name, quality=90)
            lines.append(json.dumps({"file_name": name, "captions": own}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def as_features(split: Dataset) -> Dataset:
    """The split with pixels as features: 16 x 16, in colour, normalised."""
    pixels = [np.asarray(each.convert("RGB").resize((16, 16)), np.float32).ravel() for each in split[IMAGE]]
    features = np.stack([(each - each.mean()) / (each.std() + 1) for each in pixels])
    found = features_dataset(features, split[IMAGE_ID][:], split[CAPTIONS][:], split[CAPTION_IDS][:])
    return with_group_ids(found, plain_column(split, GROUP_ID))


def train(folder: Path, near_duplicates: str, seed: int, epochs: float) -> dict:
    """Recalls on what is held out and on other photographs."""
    data = {"data_dir": str(folder / "data")}
    spec = DataSpec("imagefolder", data, validation_share=0.1, seed=seed, near_duplicates=near_duplicates)
    splits = {name: as_features(split) for name, split in spec.load().items()}
    settings = {"features": "pixels", "seed": seed, "num_train_epochs": epochs, "output_dir": str(folder / "run")}
    recipe = build_recipe(RECIPE | {"dataset": "flickr8k"} | settings)
    torch.manual_seed(seed)
    processor = build_processor(recipe.model, splits["train"])
    model = build_model(recipe.model, processor, splits["train"])
    args = training_arguments(recipe, folder / "run")
    VSETrainer(model, args, train_dataset=splits["train"], processing_class=processor).train()
    found = {}
    for name in ("validation", "test"):
        metrics = evaluate_retrieval(model, processor, splits[name], progress=False)
        found[name] = {key: round(metrics[key], 1) for key in KEPT} | {"images": len(splits[name])}
    return found


def measure_training(photographs: list[Picture], captions: list[list[str]], seeds: int, epochs: float) -> dict:
    tests = len(photographs) // 11  # as many as a tenth of the others
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder / "data" / "train", photographs[tests:], captions[tests:])
        write_folder(folder / "data" / "test", photographs[:tests], captions[:tests])
        splits = DataSpec("imagefolder", {"data_dir": str(folder / "data")}, near_duplicates="hash").load()
        groups = {each: group_counts(plain_column(splits[each], GROUP_ID)) for each in splits}
        runs = {kind: [train(folder, kind, seed, epochs) for seed in range(seeds)] for kind in ("none", "hash")}
    inflation = {}
    for kind, of_kind in runs.items():
        differences = [each["validation"]["rsum"] - each["test"]["rsum"] for each in of_kind]
        spread = round(stdev(differences), 1) if seeds > 1 else None
        inflation[kind] = {"mean": round(mean(differences), 1), "std": spread}
    return {"recipe": RECIPE | {"num_train_epochs": epochs}, "photographs": len(photographs), "groups": groups,
            "seeds": list(range(seeds)), "runs": runs, "rsum_validation_minus_test": inflation}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder of Flickr8k")
    parser.add_argument("--photographs", type=int, default=1200, help="for training, half of them bursts of four")
    parser.add_argument("--copies", type=int, default=500, help="changed copies of each kind")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=RECIPE["num_train_epochs"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    where = environment()
    split = load_pairs("flickr8k", data_dir=arguments.data_dir)["train"].select(range(arguments.photographs))
    photographs = [each.convert("RGB").resize((SIDE, SIDE)) for each in split[IMAGE]]
    training = measure_training(photographs, split[CAPTIONS][:], arguments.seeds, arguments.epochs)
    files = sorted(Path(arguments.data_dir, "images").iterdir())[CHOSEN_ON:]
    hashes = measure_hashes([decode_image(file) for file in files], arguments.copies)
    command = "python scripts/benchmarks/near_duplicates.py --data_dir FLICKR8K"
    given = {"threads": torch.get_num_threads(), "environment": where, "command": command}
    record({"hashes": hashes, "training": training} | given, arguments.output)


if __name__ == "__main__":
    main()
