"""`hf-vse index`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_vse.cli.command import (
    Result,
    add_data_options,
    at_least_zero,
    command_parser,
    data_options,
    positive,
    read_lines,
    share,
)

DESCRIPTION = """Encodes photographs once, so that they can be searched often. The same command again encodes only what
is new or changed, and continues where it was interrupted. How the gallery is searched (exactly, or by an approximate
index with measured recall) is chosen from its size and said."""
EXAMPLES = """
  hf-vse index my_photos my_index --model org/vse-hardnce
  hf-vse index my_index --dataset flickr8k --data_dir DIR --split validation --model runs/flickr8k_photos
  hf-vse index embeddings.npy my_index --model org/vse-hardnce --items items.jsonl
  hf-vse index my_photos my_index --model DIR --query_bank sentences.txt      to search with --correction
  hf-vse index my_photos my_index --model DIR --kind hnsw --recall 0.99
  accelerate launch --num_processes 8 -m hf_vse.cli index my_photos my_index --model DIR"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("index", DESCRIPTION, EXAMPLES)
    parser.add_argument("source", nargs="?", help="folder of images, or array of embeddings; or give --dataset")
    parser.add_argument("index", type=Path, help="folder to write")
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--items", type=Path, help="for an array: JSON lines, what each row stands for")
    parser.add_argument("--split", default="test", help="of the data set [test]")
    parser.add_argument("--kind", default="auto", help="auto, exact, ivf, hnsw or pq [auto]")
    parser.add_argument("--recall", type=share, default=0.95, help="of an approximate index, to be reached [0.95]")
    parser.add_argument("--batch_size", type=positive, default=64, help="images encoded at once [64]")
    parser.add_argument("--num_workers", type=at_least_zero, default=0, help="processes that decode images [0]")
    parser.add_argument("--max_broken_share", type=share, default=0.01, help="unreadable images tolerated [0.01]")
    parser.add_argument(
        "--query_bank",
        type=Path,
        metavar="FILE",
        help="sentences such as will be asked, a line each, to learn hubs from",
    )
    add_data_options(parser, None, "")
    arguments = parser.parse_args(argv)
    if (arguments.source is None) == (arguments.dataset is None):
        parser.error("give either a folder (or an array) or --dataset")
    return arguments


def run(arguments: argparse.Namespace) -> Result | None:
    from accelerate import PartialState

    from hf_vse.search.encoder import Encoder
    from hf_vse.search.gallery import GalleryIndex

    options: dict[str, Any] = {"kind": arguments.kind, "recall": arguments.recall, "progress": not arguments.quiet}
    encoder = Encoder.from_pretrained(arguments.model)
    bank = [] if arguments.query_bank is None else read_lines("query_bank", arguments.query_bank)
    if Path(arguments.source or "").suffix in (".npy", ".safetensors"):
        gallery = from_array(arguments, encoder, options, bank)
    else:
        options |= {name: getattr(arguments, name) for name in ("batch_size", "num_workers", "max_broken_share")}
        options["query_bank"] = bank
        source, options["origin"] = arguments.source, None
        if source is None:
            source, options["origin"] = load_split(arguments)
        gallery = GalleryIndex.build(source, encoder, arguments.index, **options)
    if not PartialState().is_main_process:
        return None
    record = {"index": str(arguments.index), "items": len(gallery), "plan": gallery.plan.to_dict()}
    record |= {"broken": gallery.facts.get("broken", [])}
    text = f"{len(gallery):,} items in {arguments.index}\nsearch    {gallery.plan}"
    return Result(record, f'{text}\ntry       hf-vse search {arguments.index} "two dogs in the snow"')


def load_split(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The data set, and how to find its photographs again."""
    from hf_vse.data.trained_on import HELD_OUT, data_settings, held_out, load_as_trained

    settings, chosen = data_settings(arguments.model, arguments.dataset, data_options(arguments)), {}
    if arguments.split == "validation":
        chosen = {HELD_OUT: held_out(arguments.model)}
    splits = load_as_trained(settings, arguments.split, chosen.get(HELD_OUT, {}))
    for name in ("data_dir", "split_file", "features"):  # the gallery is opened from anywhere
        if name in settings and Path(settings[name]).exists():
            settings[name] = str(Path(settings[name]).absolute())
    return splits[arguments.split], settings | {"split": arguments.split} | chosen


def from_array(arguments: argparse.Namespace, encoder: Any, options: dict[str, Any], bank: list[str]) -> Any:
    """A gallery of vectors that were computed elsewhere, with the model that queries will use."""
    import json

    from hf_vse.data.features import read_array
    from hf_vse.search.gallery import GalleryIndex

    embeds = read_array(arguments.source, "embeds")
    if embeds.shape[1] != encoder.dim:
        raise ValueError(f"{arguments.source} has vectors of {embeds.shape[1]}, {encoder.name} makes {encoder.dim}")
    items = None
    if arguments.items is not None:
        items = [json.loads(line) for line in arguments.items.read_text(encoding="utf-8").splitlines()]
    gallery = GalleryIndex(embeds, items, encoder.name, **options)
    gallery.facts["digest"] = encoder.digest
    if bank:
        gallery.learn_hubs(encoder.texts(bank))
    gallery.save(arguments.index)
    return gallery
