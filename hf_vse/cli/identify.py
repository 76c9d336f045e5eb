"""`hf-vse identify`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_vse.cli.command import Result, command_parser, share
from hf_vse.cli.link import add_kept_encoding, auto_or_number, check_sheet, encoding_of, rate

if TYPE_CHECKING:
    from hf_vse.link.identify import Chosen, Identified, Things

DESCRIPTION = """Tells which thing of a gallery a photograph shows (product, logo, work of art, animal), or that it is
unknown: one view of each thing is enough. Several views of a thing, photographs, crops and sentences, pool to one
vector. A gallery is a folder of images with metadata.jsonl, whose field `entity` names the thing; a folder with one
folder of images for each thing; a file.jsonl, as `hf-vse link` takes it; or a gallery of `hf-vse index`.

A photograph that scores below a threshold with every thing is unknown. By default the threshold is the score that 1 %
of the gallery's photographs would exceed with a thing that they do not show. Known photographs (--labelled) choose the
one with the highest F1: half of them choose it, the other half judge the result. Photographs of things that are not in
the gallery belong among them, with a label that the gallery does not have."""
EXAMPLES = """
  hf-vse identify logos photo.jpg --model org/clip             one folder for each logo, or metadata.jsonl with entity
  hf-vse identify logos street_photos --model DIR --output found.csv --sheet found.png
  hf-vse identify logos new/*.jpg --model DIR --false_accept_rate 0.001   hardly ever take a stranger for a thing
  hf-vse identify logos new/*.jpg --model DIR --labelled validation       the threshold with the best F1, and how good
  hf-vse identify logos photo.jpg --model DIR --label brand --label_is_text    a field that names it and describes it
  hf-vse identify my_index photo.jpg --label product --json    a gallery, whose model is known; machine-readable"""
COLUMNS = ("photo", "label", "score", "view", "runner_up", "runner_up_score")
UNKNOWN = "unknown"
SHOWN = 20  # photographs on a contact sheet
METRICS = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "top1": "top-1",
    "false_accept_rate": "false accepts",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("identify", DESCRIPTION, EXAMPLES)
    parser.add_argument("gallery", help="the things, with one or several views of each")
    parser.add_argument("photos", nargs="*", metavar="photo", help="photographs, or folders of them")
    parser.add_argument("--model", help="any model that `hf-vse evaluate` takes [the one of the gallery]")
    add_things(parser)
    parser.add_argument("--name", metavar="FIELD", help="what a view is called [file, else id, image_id or row]")
    parser.add_argument("--text", default="captions", metavar="FIELD", help="sentences about a view [captions]")
    add_unknown(parser.add_argument_group("unknown"))
    group = parser.add_argument_group("execution")
    group.add_argument("--output", type=Path, help="CSV file with a line for each photograph")
    group.add_argument("--sheet", type=Path, help=f"PNG file: contact sheet, of the {SHOWN} least certain if more")
    add_kept_encoding(group)
    arguments = parser.parse_args(argv)
    if not arguments.photos and arguments.labelled is None:
        parser.error("give photographs to identify, or --labelled to see how good it is")
    if not arguments.photos and (arguments.output or arguments.sheet):
        parser.error("--output and --sheet are of photographs: give some")
    check_unknown(parser, arguments)
    return arguments


def add_things(parser: argparse._ActionsContainer) -> None:
    """Adds options that say what the things of a gallery are."""
    parser.add_argument(
        "--label", metavar="FIELD", help="what names the thing [entity, else the folder, else each image is a thing]"
    )
    parser.add_argument("--label_is_text", action="store_true", help="the label, in words, is a text of the thing too")
    parser.add_argument(
        "--image_weight", type=share, default=0.5, help="of the photographs where a thing has texts too [0.5]"
    )


def add_unknown(parser: argparse._ActionsContainer) -> None:
    """Adds options that say what is unknown."""
    parser.add_argument(
        "--threshold", type=auto_or_number, metavar="auto|NUMBER", help="lower scores are unknown [auto]"
    )
    parser.add_argument(
        "--false_accept_rate",
        type=rate,
        metavar="RATE",
        help="share of the photographs of other things that may be taken for one [0.01 without --labelled]",
    )
    parser.add_argument("--labelled", metavar="GALLERY", help="known photographs, labelled like the gallery")


def check_unknown(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.threshold is not None and arguments.false_accept_rate is not None:
        parser.error("--threshold NUMBER and --false_accept_rate exclude each other: give one of them")


def run(arguments: argparse.Namespace) -> Result:
    from hf_vse.files import check_output_folder
    from hf_vse.link.identify import choose_threshold, embed_things, identify, known_photographs, labels_of
    from hf_vse.link.output import check_links_file
    from hf_vse.link.records import read_records

    if arguments.output is not None:
        arguments.output = check_links_file(arguments.output, COLUMNS, "identified photographs")
    if arguments.sheet is not None:
        arguments.sheet = check_sheet(arguments.sheet)
    if arguments.embeddings is not None:
        check_output_folder("--embeddings", arguments.embeddings)
    photos = photographs_of(arguments.photos)
    records = read_records(arguments.gallery, arguments.name, arguments.text)
    labelled = None if arguments.labelled is None else read_records(arguments.labelled, arguments.name)
    for each in filter(None, (records, labelled)):
        labels_of(each, arguments.label)  # what is wrong is said before the model is loaded
    encoder, options = encoding_of([records], arguments)
    of_things = {"label": arguments.label, "label_is_text": arguments.label_is_text}
    things = embed_things(records, encoder, arguments.image_weight, **of_things, **options)
    known = None
    if labelled is not None:
        known = known_photographs(things, labelled, encoder, arguments.label, **options)
    stated = {name: getattr(arguments, name) for name in ("threshold", "false_accept_rate")}
    chosen = choose_threshold(things, known, **stated)
    embeds, unreadable = vectors_of(photos, encoder, options)
    photos = [photo for photo in photos if photo not in unreadable]
    lines = []
    if photos:
        found = identify(things, embeds, chosen.threshold)
        lines = identified_lines(photos, things, found)
        if arguments.sheet is not None:
            draw_identified(photos, things, found, chosen, arguments.sheet)
    if arguments.output is not None:
        write_identified(lines, arguments.output)
    record = identified_record(things, chosen, lines, unreadable)
    refused = f"{len(unreadable):,} photographs cannot be read (first: {unreadable[0]})" if unreadable else ""
    return Result(record, "\n".join(text_lines(record)), refused)


def photographs_of(names: Sequence[str]) -> list[str]:
    """The files that are named, and those in the folders that are."""
    from hf_vse.search.gallery_images import of_folder

    found = []
    for name in names:
        if Path(name).is_dir():
            found += [str(Path(name) / image.item["file"]) for image in of_folder(Path(name))[0]]
        elif Path(name).is_file():
            found.append(name)
        else:
            raise FileNotFoundError(f"photo {name!r:.200} is not a file and no folder: correct the name")
    return list(dict.fromkeys(found))


def vectors_of(photos: Sequence[str], encoder: Any, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """The vectors of the photographs that can be read, and the names of the others."""
    import numpy as np

    from hf_vse.data.schema import IMAGE
    from hf_vse.embed.run import encode_images

    if not photos:
        return np.empty((0, encoder.dim), np.float32), []
    how = {name: options[name] for name in ("batch_size", "num_workers", "progress")}
    found = encode_images(encoder, [{IMAGE: photo} for photo in photos], **how)
    readable = found.readable.numpy()
    return found.embeds.numpy()[readable], [photos[row] for row in np.flatnonzero(~readable).tolist()]


def identified_lines(photos: Sequence[str], things: "Things", found: "Identified") -> list[dict[str, Any]]:
    """For each photograph a value of each of `COLUMNS`; None where there is none."""
    from math import isfinite

    def named(thing: int) -> str | None:
        return things.labels[thing] if thing >= 0 else None

    lines = []
    for photo, thing, score, view, other, below in zip(photos, *(each.tolist() for each in found), strict=True):
        values = (photo, named(thing), score, things.views.names[view] if thing >= 0 else None, named(other), below)
        rounded = (None if isinstance(each, float) and not isfinite(each) else each for each in values)
        lines.append(dict(zip(COLUMNS, rounded, strict=True)))
    return lines


def write_identified(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the CSV file, whole or not at all; `label` is empty for an unknown thing, whose best candidate then is
    the runner-up."""
    from hf_vse.files import write_table

    rows = ([f"{each:.6f}" if isinstance(each, float) else each for each in line.values()] for line in lines)
    write_table(path, COLUMNS, rows)


def identified_record(
    things: "Things", chosen: "Chosen", lines: list[dict[str, Any]], unreadable: Sequence[str]
) -> dict[str, Any]:
    record: dict[str, Any] = {"things": len(things.labels), "views": len(things.views)}
    record |= {"left_out": things.views.left_out, "threshold": round(chosen.threshold, 6), "chosen": chosen.how}
    if chosen.judged is not None:
        judged = {name: round(value, 4) for name, value in chosen.judged.items()}
        record |= {"metrics": judged, "judged_on": chosen.judged_on}
    return record | {"photos": lines, "unreadable": list(unreadable)}


def text_lines(record: dict[str, Any]) -> list[str]:
    lines = [f"{record['things']:,} things with {record['views']:,} views"]
    lines.append(f"threshold {record['threshold']:.4f} ({record['chosen']})")
    if "metrics" in record:
        lines.append(f"judged on {record['judged_on']:,} known photographs:")
        lines.append("".join(f"{title:>15}" for title in METRICS.values()))
        lines.append("".join(f"{record['metrics'][name]:>15.3f}" for name in METRICS))
    width = max([len(line["photo"]) for line in record["photos"]], default=0)
    for line in record["photos"]:
        score = "" if line["score"] is None else f" {line['score']:.3f}"
        other = "" if line["runner_up"] is None else f"   ({line['runner_up']} {line['runner_up_score']:.3f})"
        lines.append(f"{line['photo']:<{width}}  {line['label'] or UNKNOWN}{score}{other}")
    return lines


def draw_identified(
    photos: Sequence[str], things: "Things", found: "Identified", chosen: "Chosen", path: Path
) -> None:
    """Writes the contact sheet: every photograph, or the least certain, the nearest view and the runner-up."""
    import numpy as np

    from hf_vse.data.decoding import decode_image
    from hf_vse.files import whole_file
    from hf_vse.plots import plot_links

    def shown(thing: int, score: float, view: int | None = None) -> tuple[Any, str] | None:
        if thing < 0:
            return None
        row = int(np.flatnonzero(things.owner == thing)[0]) if view is None else view
        return things.views.image(row), f"{score:.3f}  {things.labels[thing]}"

    best = np.where(found.things >= 0, found.scores, found.runner_up_scores)
    order = np.argsort(np.abs(best - chosen.threshold), kind="stable") if len(photos) > SHOWN else range(len(photos))
    rows = []
    for row in list(order)[:SHOWN]:
        link = shown(int(found.things[row]), float(found.scores[row]), int(found.views[row]))
        runner_up = shown(int(found.runners_up[row]), float(found.runner_up_scores[row]))
        rows.append(((decode_image(photos[row]), Path(photos[row]).name), link, runner_up))
    with whole_file(path) as unfinished:
        heads = ("photograph", "recognised as", "runner-up")
        plot_links(f"recognised, threshold {chosen.threshold:.3f}", rows, unfinished, heads, UNKNOWN)
