"""`hf-vse data`."""

import argparse
from collections.abc import Sequence
from typing import Any

from hf_vse.cli.command import Result, add_data_options, at_least_zero, command_parser, data_options, positive

DESCRIPTION = """show: the contents of a data set, as training reads it. push: the same as parquet shards with the
images on the Hub, with a card. Publish only what you may: photographs of COCO and Flickr belong to their authors.
catalogues: two folders of generated scenes with known links, duplicates and strangers, to try `hf-vse link` on, and
a third one of other scenes, with the column `entity`, to train on."""
EXAMPLES = """
  hf-vse data show --dataset coco --data_dir DIR
  hf-vse data show --dataset imagefolder --data_dir my_photos --json
  hf-vse data push org/my-photos --dataset imagefolder --data_dir my_photos --private
  hf-vse data catalogues my_catalogues --records 200 --training 500"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("data", DESCRIPTION, EXAMPLES)
    parser.add_argument("action", choices=["show", "push", "catalogues"])
    parser.add_argument("target", nargs="?", help="push: organisation/name on the Hub; catalogues: folder to write")
    add_data_options(parser, "scenes", " [scenes]")
    parser.add_argument("--private", action="store_true", default=None, help="push: visible to you alone")
    parser.add_argument("--license", help="push: of the data, such as cc-by-4.0; goes into the card")
    parser.add_argument("--token", help="push: access token [the one of `hf auth login`]")
    parser.add_argument("--records", type=positive, default=200, help="catalogues: with a match in the other [200]")
    parser.add_argument(
        "--training", type=at_least_zero, default=0, help="catalogues: further entities, to train on [0]"
    )
    parser.add_argument("--seed", type=at_least_zero, default=0, help="catalogues: other scenes [0]")
    arguments = parser.parse_args(argv)
    if (arguments.action == "show") == (arguments.target is not None):
        parser.error("push needs organisation/name, catalogues a folder, show takes none")
    return arguments


def run(arguments: argparse.Namespace) -> Result:
    if arguments.action == "catalogues":
        return written_catalogues(arguments)
    from hf_vse.data.sources import load_pairs

    splits = load_pairs(arguments.dataset, **data_options(arguments))
    if arguments.action == "show":
        record = {name: described_split(split) for name, split in splits.items()}
        return Result(record, splits_table(record))
    from hf_vse.hub.data import push_data

    options = {"private": arguments.private, "license": arguments.license, "token": arguments.token}
    url = push_data(splits, arguments.target, source=arguments.dataset, **options)
    return Result({"dataset": url}, f"dataset   {url}\nread it   load_pairs({arguments.target!r})")


def written_catalogues(arguments: argparse.Namespace) -> Result:
    from hf_vse.data.scene_catalogues import write_catalogues

    counts = {"training": arguments.training, "seed": arguments.seed}
    record = write_catalogues(arguments.target, arguments.records, **counts)
    lines = [f"{name:<12}{value}" for name, value in record.items()]
    lines.append(f"try         hf-vse link {record['a']} {record['b']} --model DIR --labels {record['pairs']}")
    return Result(record, "\n".join(lines))


def described_split(split: Any) -> dict[str, Any]:
    from hf_vse.data.schema import CAPTIONS, IMAGE_ID, fingerprint

    plain = split.with_format(None)
    captions = plain[CAPTIONS][:]
    words = [len(caption.split()) for of_image in captions for caption in of_image]
    return {
        "images": len(captions),
        "captions": len(words),
        "captions_per_image": round(len(words) / max(1, len(captions)), 2),
        "words_per_caption": round(sum(words) / max(1, len(words)), 1),
        "fingerprint": fingerprint(plain[IMAGE_ID][:], captions),
        "columns": split.column_names,
        "example": captions[0][0] if words else "",
    }


def splits_table(record: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':<12}{'images':>10}{'captions':>10}{'per image':>11}{'words':>7}  fingerprint"]
    for name, facts in record.items():
        lines.append(
            f"{name:<12}{facts['images']:>10,}{facts['captions']:>10,}{facts['captions_per_image']:>11}"
            f"{facts['words_per_caption']:>7}  {facts['fingerprint']}"
        )
    first = next(iter(record.values()))
    return "\n".join([*lines, f"columns     {', '.join(first['columns'])}", f"such as     {first['example']}"])
