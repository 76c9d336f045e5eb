"""`hf-vse index`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from hf_vse.cli.command import (
    Result,
    add_data_options,
    add_encoding,
    add_model_options,
    command_parser,
    data_options,
    encoding_options,
    model_options,
    read_lines,
    share,
)
from hf_vse.search.plan import IndexKind

DESCRIPTION = """Encodes photographs once, so that they can be searched often. The same command again encodes only what
is new or changed, and continues where it was interrupted. How the gallery is searched (exactly, or by an approximate
index with measured recall) is chosen from its size and said."""
EXAMPLES = """
  hf-vse index my_photos my_index --model org/vse-hardnce
  hf-vse index my_photos my_index --model google/siglip-base-patch16-224
  hf-vse index my_photos my_index --model my_encoder.py:MyEncoder
  hf-vse index my_index --dataset flickr8k --data_dir DIR --split validation --model runs/flickr8k_photos
  hf-vse index my_photos my_index --model DIR --fast_queries                  to search without torch
  hf-vse index embeddings.npy my_index --model org/vse-hardnce --items items.jsonl
  hf-vse index my_photos my_index --model DIR --query_bank sentences.txt      to search with --correction
  hf-vse index my_photos my_index --model DIR --kind hnsw --recall 0.99
  accelerate launch --num_processes 8 -m hf_vse.cli index my_photos my_index --model DIR
  hf-vse index 'shards/{00000..00999}.tar' my_index --model DIR         run it as often, and where, as you like"""

KINDS = ("auto", *get_args(IndexKind))
NOTHING_NEW = "nothing is new, changed or gone: the model was not opened"
LEFT_OUT = {
    "passed_over": "pictures of a kind that is not read",
    "unmatched": "lines of metadata.jsonl that name no image",
    "repeated": "lines of metadata.jsonl before another about the same image",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("index", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "source",
        nargs="?",
        help="folder of images, shards ('{000..999}.tar', 's3://b/*.parquet'), array of embeddings, or a gallery to "
        "copy; or give --dataset",
    )
    parser.add_argument("index", type=gallery_place, help="folder to write, outside of the photographs")
    parser.add_argument("--model", help="any model that `hf-vse evaluate` takes; a gallery to copy has its own")
    parser.add_argument("--items", type=Path, help="for an array: JSON lines, what each row stands for")
    parser.add_argument("--split", default="test", help="of the data set [test]")
    parser.add_argument("--kind", default="auto", choices=KINDS, help="how it is searched [auto]")
    parser.add_argument("--recall", type=share, default=0.95, help="of an approximate index, to be reached [0.95]")
    add_encoding(parser)
    parser.add_argument(
        "--query_bank",
        type=Path,
        metavar="FILE",
        help="sentences such as will be asked, a line each, to learn hubs from",
    )
    parser.add_argument(
        "--parts", metavar="DIR", help="for shards: what is encoded of each; all processes see it [INDEX.parts]"
    )
    parser.add_argument(
        "--fast_queries",
        action="store_true",
        help="keep the text tower with the gallery, as ONNX: a search by text then needs no torch",
    )
    add_model_options(parser)
    add_data_options(parser, None, "")
    arguments = parser.parse_args(argv)
    if (arguments.source is None) == (arguments.dataset is None):
        parser.error("give either a folder (or an array) or --dataset")
    shards = of_shards(arguments)
    copied = arguments.source is not None and not shards and holds_gallery(arguments.source)
    useless = [name for name in ("model", "query_bank", "fast_queries") if getattr(arguments, name)]
    if copied and useless:
        parser.error(f"--{useless[0]} has no effect: a gallery is copied as it is")
    if not copied and arguments.model is None:
        parser.error("--model is missing: name what encodes the images")
    if arguments.items is not None and not is_array(arguments):
        parser.error("--items goes with an array of embeddings (.npy, .safetensors)")
    columns = ("image_column", "caption_column") if shards else ()
    given = [name for name in data_options(arguments) if name not in columns]
    if arguments.dataset is None and given:
        parser.error(f"--{given[0]} goes with --dataset")
    if arguments.fast_queries and (shards or "://" in arguments.index):
        parser.error("--fast_queries goes with a gallery of images or of an array, in a folder")
    if not shards and arguments.parts is not None:
        parser.error("--parts goes with shards (.tar, .parquet)")
    if shards and arguments.query_bank is not None:
        parser.error("--query_bank has no effect on shards: index them without")
    if shards and arguments.parts is None and "://" in arguments.index:
        parser.error("--parts is missing: a folder that all processes see, for what they encode")
    return arguments


def gallery_place(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("give the name of a folder")
    return text


def holds_gallery(source: str) -> bool:
    """Whether the source is a gallery, and not images or an array; before heavy libraries are imported."""
    return "://" in source or (Path(source, "gallery.json").is_file() and Path(source, "versions").is_dir())


def is_array(arguments: argparse.Namespace) -> bool:
    return Path(arguments.source or "").suffix in (".npy", ".safetensors")


def of_shards(arguments: argparse.Namespace) -> bool:
    return Path(arguments.source or "").suffix in (".tar", ".parquet")


def run(arguments: argparse.Namespace) -> Result | None:
    from hf_vse.search.locations import open_store
    from hf_vse.search.store import move_gallery

    bank = [] if arguments.query_bank is None else read_lines("query_bank", arguments.query_bank)
    store = open_store(arguments.index)
    if arguments.source is not None and not of_shards(arguments) and holds_gallery(arguments.source):
        store.check_place(arguments.source)
        move_gallery(open_store(arguments.source), store, arguments.kind, arguments.recall)
    elif of_shards(arguments):
        from_shards(arguments, store)
    elif is_array(arguments):
        keep_text_tower(arguments, from_array(arguments, store, bank))
    else:
        encoder = from_images(arguments, store, bank)
        if encoder is None:
            return described_gallery(store, NOTHING_NEW)
        keep_text_tower(arguments, encoder)
    from accelerate import PartialState

    return described_gallery(store) if PartialState().is_main_process else None


def described_gallery(gallery: Any, *remarks: str) -> Result:
    """What the gallery holds, and what was left out of it."""
    index = gallery.location
    record = {"index": index, "items": len(gallery), "plan": gallery.plan.to_dict()}
    record |= {"broken": gallery.facts.get("broken", [])}
    lines = [f"{len(gallery):,} items in {index}", *remarks, f"search    {gallery.plan}"]
    for name, what in LEFT_OUT.items():
        if left := gallery.facts.get(name):
            record[name] = left
            lines.append(f"left out  {left['count']:,} {what}, the first {left['first'][0]}")
    lines.append(f'try       hf-vse search {index} "two dogs in the snow"')
    return Result(record, "\n".join(lines))


def open_encoder(arguments: argparse.Namespace) -> Any:
    """The model, which can do what is asked for."""
    from hf_vse.embed.load import load_encoder
    from hf_vse.search.text_tower import check_text_tower

    encoder = load_encoder(arguments.model, **model_options(arguments))
    if arguments.fast_queries:
        check_text_tower(encoder)
    return encoder


def keep_text_tower(arguments: argparse.Namespace, encoder: Any) -> None:
    """With `--fast_queries`, by the main process: the text tower of the gallery's model, for `hf-vse search`."""
    from accelerate import PartialState

    if arguments.fast_queries and PartialState().is_main_process:
        from hf_vse.hub.onnx_export import export_text_tower
        from hf_vse.search.storage import locked
        from hf_vse.search.text_tower import write_text_tower

        with locked(Path(arguments.index)):
            write_text_tower(Path(arguments.index), encoder, export_text_tower)


def from_images(arguments: argparse.Namespace, store: Any, bank: list[str]) -> Any:
    """A gallery of a folder or of a data set; returns its encoder, or None where nothing had to be done."""
    from hf_vse.search.gallery_images import of_folder, read_metadata
    from hf_vse.search.nothing_new import is_indexed, states_of

    options = {"kind": arguments.kind, "recall": arguments.recall} | encoding_options(arguments)
    source, origin = arguments.source, None
    if source is not None:
        read_metadata(Path(source))  # what is wrong with it is said before the model is loaded
    store.check_place(source)
    if header := header_without_model(arguments, bank):
        options["listed"] = of_folder(Path(source))
        asked = arguments.model, arguments.kind, arguments.recall
        if is_indexed(Path(arguments.index), header, options["listed"], source, *asked):
            return None
    before = states_of(arguments.model)
    encoder = open_encoder(arguments)
    if source is None:
        source, origin = load_split(arguments)
    store.build(source, encoder, origin=origin, query_bank=bank, progress=not arguments.quiet, **options)
    if arguments.source is not None:
        remember_model(arguments, before)
    return encoder


def header_without_model(arguments: argparse.Namespace, bank: list[str]) -> dict[str, Any] | None:
    """What is recorded of the gallery of a folder, if it needs no model to know that this one made it."""
    from hf_vse.search.nothing_new import made_by_files
    from hf_vse.search.text_tower import tower_folder

    folder = Path(arguments.index)
    others = (arguments.dataset, arguments.device, arguments.trust_remote_code, bank)
    header = None if any(others) else made_by_files(folder, arguments.model, arguments.dtype)
    to_keep = arguments.fast_queries and header and not tower_folder(folder, header["digest"]).is_dir()
    return None if to_keep else header


def remember_model(arguments: argparse.Namespace, before: list[Any] | None) -> None:
    """By the main process: by which files the model of the gallery is known again."""
    from accelerate import PartialState

    from hf_vse.search.nothing_new import remember_files
    from hf_vse.search.storage import locked

    if "://" not in arguments.index and PartialState().is_main_process:
        with locked(Path(arguments.index)):
            remember_files(Path(arguments.index), arguments.model, before)


def from_shards(arguments: argparse.Namespace, store: Any) -> None:
    """A gallery of shards, or a share of the work for it."""
    from hf_vse.data.shards import find_shards
    from hf_vse.embed.load import load_encoder
    from hf_vse.search.shards import index_shards

    shards = find_shards(arguments.source)  # what is missing is said before the model is loaded
    store.check_place()
    encoder = load_encoder(arguments.model, **model_options(arguments))
    names = ("kind", "recall", "image_column", "caption_column")
    options = {name: getattr(arguments, name) for name in names} | encoding_options(arguments)
    parts = arguments.parts or f"{arguments.index.rstrip('/')}.parts"
    index_shards(shards, encoder, arguments.index, parts, progress=not arguments.quiet, **options)


def load_split(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The data set, and how to find its images again from any folder."""
    from hf_vse.data.spec import DataSpec

    spec = DataSpec.of_model(arguments.model, arguments.dataset, arguments.split, **data_options(arguments))
    return spec.load_split(), spec.absolute().to_dict()


def from_array(arguments: argparse.Namespace, store: Any, bank: list[str]) -> Any:
    """A gallery of vectors that were computed elsewhere, with the model that queries will use, which it returns."""
    from hf_vse.search.header import file_checksum

    source = Path(arguments.source)
    embeds, items = read_vectors(source, arguments.items)
    store.check_place()
    encoder = open_encoder(arguments)
    if embeds.shape[1] != encoder.dim:
        raise ValueError(f"{source} has vectors of {embeds.shape[1]}, {encoder.name} makes {encoder.dim}")
    options = {"kind": arguments.kind, "recall": arguments.recall, "query_bank": bank}
    options |= {"made_of": file_checksum(source), "progress": not arguments.quiet}
    store.build_of_vectors(embeds, items, encoder, **options)
    return encoder


def read_vectors(source: Path, items: Path | None) -> tuple[Any, list[Any] | None]:
    """The array (items, dim), and what its rows stand for, if a file of JSON lines tells."""
    from hf_vse.data.features import read_array
    from hf_vse.files import numbered_lines, parse_json

    embeds = read_array(source, "embeds")
    if embeds.ndim != 2:
        raise ValueError(f"{source} has shape {embeds.shape}: embeddings are (items, dim), a vector for each item")
    if items is None:
        return embeds, None
    if not items.is_file():
        raise FileNotFoundError(f"items {items} does not exist: give a file with a JSON value in each line")
    values = [parse_json(line, f"{items}, line {number}") for number, line in numbered_lines(items)]
    if len(values) != len(embeds):
        raise ValueError(f"{items} has {len(values)} lines for the {len(embeds)} vectors of {source}: one for each")
    return embeds, values
