"""Shared parts of all commands: the result type, the parser, common options."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hf_vse
from hf_vse.files import numbered_lines
from hf_vse.training.documented import documented_in

PACKAGE = Path(hf_vse.__file__).parent
DATA_OPTIONS = {
    "data_dir": "DIR", "split_file": "FILE", "features": "FILE", "image_column": "NAME", "caption_column": "NAME",
}  # fmt: skip


@dataclass
class Result:
    """The result of a command: `record` for --json, `text` for the terminal; `refused` says what failed."""

    record: Any
    text: str
    refused: str = ""


def command_parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser with examples in its help and the options that every command has."""
    parser = argparse.ArgumentParser(
        prog=f"hf-vse {name}",
        description=description,
        epilog="examples:\n" + examples.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, errors too")
    parser.add_argument("--quiet", action="store_true", help="no progress bars and no log messages")
    return parser


def add_data_options(parser: argparse.ArgumentParser, dataset: str | None, note: str) -> None:
    """Adds the options of `load_pairs` in `DATA_OPTIONS`, with the texts of its docstring."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", default=dataset, metavar="NAME", help=f"scenes, coco, flickr30k, flickr8k, ...{note}"
    )
    texts = documented_in(PACKAGE / "data" / "sources.py", "load_pairs")
    for name, metavar in DATA_OPTIONS.items():
        group.add_argument(f"--{name}", metavar=metavar, help=texts[name].removesuffix("."))


def add_model_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """How a model is opened, see `load_encoder`."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... [what there is]")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights [float32]")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those given, for `load_encoder`."""
    return {name: getattr(arguments, name) for name in ("device", "dtype", "trust_remote_code")}


def text_tower_of(gallery: Any, arguments: argparse.Namespace) -> Any:
    """The text tower that a gallery carries, see `open_text_tower`; None where an option says how to open a model."""
    from hf_vse.search.text_tower import open_text_tower

    given = (arguments.model, *model_options(arguments).values())
    return None if any(given) else open_text_tower(gallery)


def add_encoding(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """How images are encoded."""
    parser.add_argument("--batch_size", type=positive, default=64, help="images encoded at once [64]")
    parser.add_argument("--num_workers", type=at_least_zero, default=0, help="processes that decode images [0]")
    parser.add_argument("--max_broken_share", type=share, default=0.01, help="unreadable images tolerated [0.01]")


def encoding_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those given, for whatever encodes images."""
    return {name: getattr(arguments, name) for name in ("batch_size", "num_workers", "max_broken_share")}


def positive(text: str) -> int:
    """Option type: an integer >= 1. `at_least_zero` is an integer >= 0, `share` a number between 0 and 1."""
    return whole_number(text, 1)


def at_least_zero(text: str) -> int:
    return whole_number(text, 0)


def whole_number(text: str, least: int) -> int:
    if not text.lstrip("-").isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= {least}")
    return int(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def read_lines(name: str, path: Path) -> list[str]:
    """The non-empty lines of a text file."""
    if not path.is_file():
        raise FileNotFoundError(f"{name} {path} does not exist: give a text file with one sentence per line")
    lines = [line.strip() for _, line in numbered_lines(path)]
    if not lines:
        raise ValueError(f"{name} {path} is empty: write one sentence per line")
    return lines


def data_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The given data options, as arguments of `load_pairs`."""
    return {name: value for name in DATA_OPTIONS if (value := getattr(arguments, name)) is not None}


def bundled(name: str) -> Path:
    """A folder shipped with the package, in an installation or in a checkout of the repository.

    In a checkout `recipes` is `scripts/recipes`, and `spaces_demo` is `spaces_demo`.
    """
    in_checkout = {"recipes": PACKAGE.parent / "scripts" / "recipes", "spaces_demo": PACKAGE.parent / "spaces_demo"}
    installed = PACKAGE / "bundled" / name
    return installed if installed.is_dir() else in_checkout[name]
