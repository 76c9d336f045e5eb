"""`hf-vse link`."""

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_vse.cli.command import (
    Result,
    add_encoding,
    add_model_options,
    command_parser,
    encoding_options,
    model_options,
    share,
)
from hf_vse.cli.index import KINDS

if TYPE_CHECKING:
    from hf_vse.link.records import Records
    from hf_vse.link.run import Linkage, Mode

DESCRIPTION = """Finds which records of two catalogues are the same thing (product, firm, work of art), or the
duplicates in one. A record is a photograph, a text, or both: its vector is the weighted sum of theirs. A catalogue is
a folder of images with metadata.jsonl, as `hf-vse index` takes it; a file.jsonl of the same lines, of which some may
have no file_name and be a text alone; a gallery in a folder or an engine; or a data set, saved, in parquet or tar
files, or of the Hub, with #SPLIT where it has several.

Every record gets the best match, or none below a threshold. A CSV file of known pairs (columns a and b; an empty b
says that a has no match) chooses the threshold with the highest F1: half of the records that it names choose it, the
other half judge the result. `hf-vse demo --links` writes such a file from what a person says of links. Without a file,
the threshold is the score that a stated share of records without a match would exceed; it is estimated from
second-best candidates, so it assumes that most records have a match, and one."""
EXAMPLES = """
  hf-vse link shop_a shop_b --model org/clip                     one-to-one, a false-accept rate of 1 %
  hf-vse link shop_a shop_b --model DIR --labels pairs.csv       the threshold with the best F1, and how good it is
  hf-vse link shop_a shop_b --model DIR --labels pairs.csv --strings     compared with the similarity of the texts
  hf-vse link products offers --model DIR --one_to_many --block brand    many offers of one product, within a brand
  hf-vse link shop_a shop_b --model DIR --labels links.judged.csv    what a person said in `hf-vse demo --links`
  hf-vse link shop_a --model DIR --sheet doubtful.png            duplicates in one, and the doubtful ones to look at
  hf-vse link gallery_a gallery_b --image_weight 1 --kind auto   large galleries, whose model is known
  hf-vse link milvus://host:19530/shop_a shop_b.parquet#train    a gallery in an engine and a data set"""
METRICS = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "ari": "ARI"}
DOUBTFUL = 10  # links that are shown


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("link", DESCRIPTION, EXAMPLES)
    parser.add_argument("a", help="the catalogue whose records are linked")
    parser.add_argument("b", nargs="?", help="the catalogue that they are linked to [none: duplicates in a]")
    parser.add_argument("--model", help="any model that `hf-vse evaluate` takes [the one of the gallery]")
    parser.add_argument("--image_weight", type=share, default=0.5, help="of the image where there is a text too [0.5]")
    parser.add_argument("--text", default="captions", metavar="FIELD", help="sentences of a record [captions]")
    parser.add_argument("--name", metavar="FIELD", help="what a record is called [file, else id, image_id or row]")
    add_links(parser)
    add_outputs(parser)
    arguments = parser.parse_args(argv)
    if arguments.b is None and (arguments.one_to_one or arguments.one_to_many):
        parser.error("duplicates in one catalogue are clusters: give a second catalogue, or no --one_to_...")
    if arguments.assignment == "optimal" and (arguments.one_to_many or arguments.b is None):
        parser.error("--assignment optimal goes with one-to-one links of two catalogues")
    if arguments.threshold is not None and arguments.false_accept_rate is not None:
        parser.error("--threshold NUMBER and --false_accept_rate exclude each other: give one of them")
    if arguments.strings and arguments.labels is None:
        parser.error("--strings is judged on known pairs: give --labels FILE too")
    return arguments


def add_links(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("links")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--one_to_one", action="store_true", help="each record has at most one link [this]")
    how.add_argument(
        "--one_to_many", action="store_true", help="a record of a may have several, one of b has its best"
    )
    group.add_argument(
        "--threshold", type=auto_or_number, default=None, metavar="auto|NUMBER", help="score of a link [auto]"
    )
    group.add_argument("--labels", type=Path, metavar="FILE", help="CSV file of known pairs, with the columns a and b")
    group.add_argument(
        "--false_accept_rate",
        type=rate,
        metavar="RATE",
        help="share of the records without a match that may be linked [0.01 without --labels]",
    )
    group.add_argument("--block", metavar="FIELD", help="compare only records in which this field is equal")
    group.add_argument(
        "--assignment",
        choices=("greedy", "optimal"),
        default="greedy",
        help="one-to-one: the best score first, or the highest sum, for up to 5,000 records [greedy]",
    )
    group.add_argument("--strings", action="store_true", help="judge the similarity of the texts (rapidfuzz) too")
    group.add_argument(
        "--kind",
        choices=KINDS,
        default="exact",
        help="how candidates are found; auto: by their number [exact]",
    )


def add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("execution")
    group.add_argument("--output", type=Path, default=Path("links.csv"), help="CSV file of links [links.csv]")
    group.add_argument("--sheet", type=Path, help=f"PNG file: contact sheet of the {DOUBTFUL} least certain links")
    add_kept_encoding(group)


def add_kept_encoding(group: argparse._ArgumentGroup) -> None:
    """How records are encoded, and where their vectors are kept, see `encoding_of`."""
    group.add_argument("--embeddings", type=Path, metavar="DIR", help="keep vectors there: an interrupted run goes on")
    add_encoding(group)
    add_model_options(group)


def auto_or_number(text: str) -> float | None:
    try:
        value = None if text == "auto" else float(text)
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number")
    return value


def rate(text: str) -> float:
    value = share(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1, both excluded")
    return value


def run(arguments: argparse.Namespace) -> Result:
    from hf_vse.files import check_output_folder
    from hf_vse.link.judging import check_described_file, write_description
    from hf_vse.link.labels import read_labels
    from hf_vse.link.output import check_links_file, linkage_summary, write_links
    from hf_vse.link.records import read_records
    from hf_vse.link.run import link_records
    from hf_vse.link.strings import check_strings_installed

    arguments.output = check_links_file(arguments.output)
    check_described_file(arguments.output)
    if arguments.sheet is not None:
        arguments.sheet = check_sheet(arguments.sheet)
    if arguments.embeddings is not None:
        check_output_folder("--embeddings", arguments.embeddings)
    if arguments.strings:
        check_strings_installed()
    names = [each for each in (arguments.a, arguments.b) if each is not None]
    catalogues = [read_records(each, arguments.name, arguments.text) for each in names]
    for each in catalogues if arguments.block is not None else []:
        each.values(arguments.block)  # what is wrong is said before the model is loaded
    if arguments.labels is not None:
        read_labels(arguments.labels, *(rows_by_name(each) for each in (catalogues * 2)[:2]))
    found = encoded(catalogues, arguments)
    known = [rows_by_name(each) for each in (found * 2)[:2]]
    pairs = () if arguments.labels is None else read_labels(arguments.labels, *known)
    mode: Mode = "clusters" if arguments.b is None else "one_to_many" if arguments.one_to_many else "one_to_one"
    options = {name: getattr(arguments, name) for name in ("threshold", "false_accept_rate", "block", "assignment")}
    options |= {"strings": arguments.strings, "kind": arguments.kind, "progress": not arguments.quiet}
    linkage = link_records(*found, mode=mode, pairs=pairs, **options)
    write_description(linkage, arguments.output, arguments.name, arguments.text)
    write_links(linkage, arguments.output)
    record = linkage_summary(linkage) | {"output": str(arguments.output)}
    lines = [*summary_lines(record, names), f"output    {arguments.output}"]
    lines.append(f"judge     hf-vse demo --links {shlex.quote(str(arguments.output))}")
    if arguments.sheet is not None:
        draw_doubtful(linkage, arguments.sheet)
        record["sheet"] = str(arguments.sheet)
        lines.append(f"sheet     {arguments.sheet}")
    return Result(record, "\n".join(lines))


def check_sheet(path: Path) -> Path:
    from importlib.util import find_spec

    from hf_vse.files import check_output_file

    if path.suffix.lower() != ".png":
        raise ValueError(f"--sheet {path} must end in .png")
    if find_spec("matplotlib") is None:
        raise ImportError("--sheet needs matplotlib: pip install 'hf_vse[plots]', or leave it out")
    return check_output_file("--sheet", path)


def rows_by_name(records: "Records") -> dict[str, int]:
    from hf_vse.link.labels import LEFT_OUT

    return dict.fromkeys(records.left_out, LEFT_OUT) | {name: row for row, name in enumerate(records.names)}


def encoded(catalogues: "list[Records]", arguments: argparse.Namespace) -> "list[Records]":
    """The catalogues with vectors, by the model that is named, or that made a gallery among them."""
    from hf_vse.link.records import embed_records

    encoder, options = encoding_of(catalogues, arguments)
    return [embed_records(each, encoder, arguments.image_weight, **options) for each in catalogues]


def encoding_of(catalogues: "list[Records]", arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """That model, and the options of `vectors_of_records`."""
    from hf_vse.embed.load import load_encoder
    from hf_vse.search.model import open_model

    gallery = next((each.gallery for each in catalogues if each.gallery is not None), None)
    if gallery is None and arguments.model is None:
        raise ValueError("nothing says which model makes the vectors: give --model")
    if gallery is None:
        encoder = load_encoder(arguments.model, **model_options(arguments))
    else:
        encoder = open_model(gallery, arguments.model, **model_options(arguments))
    options = encoding_options(arguments)
    if arguments.embeddings is not None:
        from hf_vse.evaluation.evaluator import kept_vectors

        options["stores"] = kept_vectors(encoder, arguments.embeddings)
    return encoder, options | {"progress": not arguments.quiet}


def summary_lines(record: dict[str, Any], names: Sequence[str]) -> list[str]:
    if record["mode"] == "clusters":
        lines = [f"{record['records']:,} records of {names[0]}"]
        found = (
            f"{record['duplicates']:,} records have an earlier duplicate; {record['with_duplicates']:,} clusters with "
        )
        lines.append(f"clusters  {record['clusters']:,}: {found}several, the largest with {record['largest']:,}")
    else:
        asking, others = names[::-1] if record["mode"] == "one_to_many" else names
        lines = [f"{record['records']:,} records of {asking}, {record['others']:,} of {others}"]
        lines.append(
            f"links     {record['links']:,}, to {record['others_linked']:,} records of {others}; "
            f"{record['without']:,} records of {asking} have no match"
        )
    lines.append(f"threshold {record['threshold']:.4f} ({record['chosen']})")
    if left := record["left_out"]:
        lines.append(f"left out  {len(left):,} records without image and text, the first {left[0]}")
    if "metrics" in record:
        shown = {name: title for name, title in METRICS.items() if name in record["metrics"]["vectors"]}
        lines += [f"judged on {record['judged_on']}:", " " * 10 + "".join(f"{each:>11}" for each in shown.values())]
        for by, values in record["metrics"].items():
            lines.append(f"{by:<10}" + "".join(f"{values[name]:>11.3f}" for name in shown))
    return lines


def draw_doubtful(linkage: "Linkage", path: Path) -> None:
    """Writes the contact sheet of the least certain links."""
    from hf_vse.files import whole_file
    from hf_vse.link.output import least_certain
    from hf_vse.plots import plot_links

    def shown(records: "Records", row: int, score: float | None = None) -> tuple[Any, str] | None:
        if row < 0:
            return None
        name = records.names[row] if score is None else f"{score:.3f}  {records.names[row]}"
        return records.image(row), "\n".join([name, *records.texts[row][:1]])

    rows = []
    for row in least_certain(linkage, DOUBTFUL).tolist():
        link = shown(linkage.others, int(linkage.links[row]), float(linkage.scores[row]))
        runner_up = shown(linkage.others, int(linkage.runners_up[row]), float(linkage.runner_up_scores[row]))
        if asking := shown(linkage.asking, row):
            rows.append((asking, link, runner_up))
    if not rows:
        raise ValueError("there is no link to draw: no record has a candidate")
    with whole_file(path) as unfinished:
        plot_links(f"the least certain links, threshold {linkage.threshold:.3f}", rows, unfinished)
