"""`hf-vse features`."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_vse.cli.command import Result, add_data_options, at_least_zero, command_parser, data_options, positive
from hf_vse.files import check_output_file, check_output_folder

DESCRIPTION = """Runs a frozen image tower over a data set once and keeps its outputs, so that many trainings can read
them instead of the photographs. For coco, flickr30k and flickr8k OUTPUT is a .npy file with a row for each image of
the split file, as --features takes it; for other data a folder that --dataset OUTPUT opens. Repeat an
interrupted command to continue it."""
EXAMPLES = """
  hf-vse features --dataset flickr8k --data_dir DIR --image_tower timm/resnet152.a1_in1k --output DIR/resnet152.npy
  hf-vse train flickr8k_features_nce --data_dir DIR --features resnet152.npy
  hf-vse features --dataset imagefolder --data_dir my_photos --model org/vse-hardnce --output my_features"""
KARPATHY = ("coco", "flickr30k", "flickr8k")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("features", DESCRIPTION, EXAMPLES)
    tower = parser.add_mutually_exclusive_group(required=True)
    tower.add_argument("--image_tower", help="pretrained image tower: folder or Hub id, timm/NAME for one of timm")
    tower.add_argument("--model", help="take the image tower of this model")
    parser.add_argument("--image_tower_weights", metavar="FILE", help="safetensors file, for a timm tower")
    parser.add_argument("--resize", type=positive, help="of a timm tower: shorter side before the crop [its own]")
    parser.add_argument("--crop", type=positive, help="of a timm tower: side of the square that it sees [its own]")
    parser.add_argument("--image_mean", type=float, nargs=3, help="of a timm tower: three numbers [its own]")
    parser.add_argument("--image_std", type=float, nargs=3, help="of a timm tower: three numbers [its own]")
    parser.add_argument("--regions", action="store_true", help="all positions instead of one pooled vector")
    parser.add_argument("--output", type=Path, required=True, help="file .npy, or folder")
    parser.add_argument("--batch_size", type=positive, default=64, help="images at once [64]")
    parser.add_argument("--num_workers", type=at_least_zero, default=0, help="processes that decode images [0]")
    add_data_options(parser, "scenes", " [scenes]")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> Result:
    from hf_vse.embed.features import extract_features

    one_array = arguments.dataset in KARPATHY and arguments.data_dir is not None
    check_output(arguments, one_array)
    model, image_processor = load_tower(arguments)
    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("regions", "batch_size", "num_workers")}
    options["progress"] = not arguments.quiet
    if one_array:
        from hf_vse.data.karpathy import image_files

        files = image_files(arguments.dataset, arguments.data_dir, arguments.split_file)
        images = [{"image": file} for file in files]
        array = extract_features(model, image_processor, images, arguments.output, **options)
        shape = list(array.shape)
        text = f"{shape} in {arguments.output}\ntry   hf-vse train flickr8k_features_nce --features {arguments.output}"
        return Result({"output": str(arguments.output), "shape": shape}, text)
    rows = save_with_features(arguments, model, image_processor, options)
    text = (
        f"{sum(rows.values()):,} images in {arguments.output}\ntry   hf-vse train RECIPE --dataset {arguments.output}"
    )
    return Result({"output": str(arguments.output), "rows": rows}, text)


def load_tower(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """A model with the chosen image tower, on the accelerator if there is one, and its image processor."""
    import torch

    from hf_vse.embed.adapters.vse import VSEEncoder
    from hf_vse.embed.load import load_encoder

    if arguments.model is not None:
        encoder = load_encoder(arguments.model, kind="vse")
        if not encoder.reads_images:
            raise ValueError(f"--model {arguments.model} was trained on precomputed features and has no image tower")
        assert isinstance(encoder, VSEEncoder)
        return encoder.model, encoder.processor.image_processor
    from hf_vse.training.build import build_image_side
    from hf_vse.training.settings import ModelArguments

    names = ("image_tower", "image_tower_weights", "resize", "crop", "image_mean", "image_std")
    model, image_processor = build_image_side(ModelArguments(**{name: getattr(arguments, name) for name in names}))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), image_processor


def save_with_features(
    arguments: argparse.Namespace, model: Any, image_processor: Any, options: dict
) -> dict[str, int]:
    """The splits with features instead of photographs, saved where `load_pairs` opens them."""
    from datasets import DatasetDict

    from hf_vse.data.digests import digest_of, images_digest
    from hf_vse.data.features import features_dataset, read_array
    from hf_vse.data.pairs import undecoded_images
    from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, IMAGE, IMAGE_ID
    from hf_vse.data.sources import load_pairs
    from hf_vse.embed.features import extract_features, features_digest, unfinished_store

    splits, made = {}, []
    made_by = features_digest(model, image_processor, options["regions"])
    for name, split in load_pairs(arguments.dataset, **data_options(arguments)).items():
        if IMAGE not in split.column_names:
            raise ValueError(f"{arguments.dataset} has no photographs but features already")
        images = undecoded_images(split)
        digest = digest_of(made_by, images_digest(images))
        made.append(arguments.output.with_name(f"{arguments.output.name}.{name}.{digest[:8]}.npy"))
        if not made[-1].is_file():
            extract_features(model, image_processor, images, made[-1], **options)
        unfinished_store(made[-1], made_by).remove()  # if a run was killed after the file was complete
        plain = split.with_format(None)
        splits[name] = features_dataset(
            read_array(made[-1]), plain[IMAGE_ID][:], plain[CAPTIONS][:], plain[CAPTION_IDS][:]
        )
    unfinished = arguments.output.with_name(f".{arguments.output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    DatasetDict(splits).save_to_disk(str(unfinished))
    take_place(unfinished, arguments.output)
    for path in made:
        path.unlink()
    return {name: len(split) for name, split in splits.items()}


def check_output(arguments: argparse.Namespace, one_array: bool) -> None:
    """Raises OSError or ValueError if the output cannot be written; called before anything is computed."""
    if one_array:
        if arguments.output.suffix != ".npy":
            raise ValueError(f"--output {arguments.output} must end in .npy")
        check_output_file("--output", arguments.output)
        return
    output = check_output_folder("--output", arguments.output)
    if output.is_dir() and any(output.iterdir()) and not holds_features(output):
        raise ValueError(f"--output {output} holds other things than features: give a new folder")


def holds_features(folder: Path) -> bool:
    """Whether this command wrote a folder; then it may replace it."""
    from datasets import DatasetDict, load_from_disk

    from hf_vse.data.schema import IMAGE_FEATURES

    try:
        splits = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError):
        return False
    return isinstance(splits, DatasetDict) and all(IMAGE_FEATURES in names for names in splits.column_names.values())


def take_place(new: Path, place: Path) -> None:
    """Moves a finished folder to its place and removes the earlier one."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
