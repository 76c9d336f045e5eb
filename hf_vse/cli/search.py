"""`hf-vse search`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_vse.cli.command import (
    Result,
    add_model_options,
    command_parser,
    model_options,
    positive,
    share,
    text_tower_of,
)

DESCRIPTION = """Finds the photographs of a gallery that fit a sentence, a photograph, or both. Without either it asks
for sentences, line by line; `-` reads them from the standard input, all at once."""
EXAMPLES = """
  hf-vse search my_index "two dogs in the snow"
  hf-vse search my_index "two dogs in the snow" "a red kite" -k 5 --json
  hf-vse search my_index --image beach.jpg --sheet similar.png --open
  hf-vse search my_index "two dogs in the snow" --sheet found.png --relevance
  hf-vse search my_index "at night" --image beach.jpg --image_weight 0.7
  hf-vse search my_index "a birthday" --where "year>=2020" --where "place~lake"
  hf-vse search my_index - < sentences.txt --json"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("search", DESCRIPTION, EXAMPLES)
    parser.add_argument("index", help="gallery that `hf-vse index` has written")
    parser.add_argument("text", nargs="*", help="one sentence or several")
    parser.add_argument("--image", help="photograph to search with")
    parser.add_argument(
        "--image_weight", type=share, default=0.5, help="its share where there is a sentence too [0.5]"
    )
    parser.add_argument("-k", type=positive, default=10, help="results for each query [10]")
    parser.add_argument("--where", action="append", default=[], help="condition, FIELD OP VALUE, OP = != < <= > >= ~")
    parser.add_argument(
        "--correction",
        choices=("qbnorm", "inverted_softmax"),
        help="correct scores for hubs; the index needs a --query_bank",
    )
    parser.add_argument("--model", help="the model that made the gallery [as the gallery names it]")
    add_model_options(parser)
    parser.add_argument("--sheet", type=Path, help="PNG file: contact sheet of what was found for the first query")
    parser.add_argument("--relevance", action="store_true", help="on it, light falls on what speaks for the sentence")
    parser.add_argument("--open", action="store_true", help="show the contact sheet")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> Result | None:
    from hf_vse.search.locations import open_store
    from hf_vse.search.model import open_model

    sentences = read_sentences() if arguments.text == ["-"] else arguments.text
    check_queries(sentences, arguments)
    gallery = open_store(arguments.index)
    gallery.check_conditions(arguments.where)  # a wrong condition is said before the model is loaded
    if not sentences and arguments.image is None and not sys.stdin.isatty():
        raise ValueError("nothing to search for: give a sentence, --image FILE, or - to read sentences from the input")
    by_text = arguments.image is None and not arguments.relevance
    encoder = text_tower_of(gallery, arguments) if by_text else None
    encoder = encoder or open_model(gallery, arguments.model, **model_options(arguments))
    if not sentences and arguments.image is None:
        for sentence in asked():
            print(results_table(answer(gallery, encoder, [sentence], arguments)), file=sys.__stdout__)
        return None
    found = answer(gallery, encoder, sentences, arguments)
    if arguments.sheet or arguments.open:
        draw_sheet(gallery, encoder, found[0], arguments)
    return Result(found, results_table(found))


def read_sentences() -> list[str]:
    """The lines of the standard input that are not empty."""
    try:
        return [line.strip() for line in sys.stdin if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"the input is not valid UTF-8 text ({error.reason}): give sentences as UTF-8") from error


def check_queries(sentences: Sequence[str], arguments: argparse.Namespace) -> None:
    """Raises ValueError or OSError where a query cannot be asked, or its contact sheet not be written."""
    from hf_vse.files import check_output_file
    from hf_vse.search.gallery_images import is_unicode

    for sentence in sentences:
        if not sentence.strip():
            raise ValueError("a query is empty; write a sentence, such as 'two dogs in the snow'")
        if not is_unicode(sentence):
            raise ValueError(f"query {sentence!r:.60} holds half a character: give it as UTF-8")
    image = arguments.image
    if image is not None and "://" not in image and not Path(image).is_file():
        raise FileNotFoundError(f"--image {image!r:.100} is not a file: give a photograph")
    if arguments.relevance and not (sentences and (arguments.sheet or arguments.open)):
        raise ValueError(
            "--relevance shows on a contact sheet what speaks for a sentence: give a sentence and --sheet"
        )
    if arguments.sheet is not None:
        if arguments.sheet.suffix.lower() != ".png":
            raise ValueError(f"--sheet {arguments.sheet} must end in .png")
        arguments.sheet = check_output_file("--sheet", arguments.sheet)


def asked() -> Iterator[str]:
    """Sentences that a person types, until an empty line."""
    while True:
        print("search> ", end="", file=sys.stderr, flush=True)
        sentence = sys.stdin.readline().strip()
        if not sentence:
            return
        yield sentence


def answer(gallery: Any, encoder: Any, sentences: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """For every query what it was and its results."""
    queries = encoder.query(sentences or None, arguments.image, arguments.image_weight)
    scores, items = gallery.search(queries, arguments.k, encoder, arguments.where, arguments.correction)
    image = {} if arguments.image is None else {"image": arguments.image}
    return [
        ({"text": sentence} if sentence else {})
        | image
        | {"results": [{"score": round(float(s), 4), "item": item} for s, item in zip(of, found, strict=True)]}
        for sentence, of, found in zip(sentences or [""], scores, items, strict=True)
    ]


def results_table(found: list[dict[str, Any]]) -> str:
    """A line for each result: rank, score, what it is, its first caption."""
    from shutil import get_terminal_size

    lines = []
    for query in found:
        lines.append(" + ".join(str(query[part]) for part in ("text", "image") if part in query))
        names = [label(result["item"]) for result in query["results"]]
        width = max((len(name) for name in names), default=0)
        for rank, (result, name) in enumerate(zip(query["results"], names, strict=True), start=1):
            line = f"{rank:>4}  {result['score']:6.3f}  {name:<{width}}  {caption(result['item'])}"
            lines.append(line[: max(60, get_terminal_size((120, 24)).columns)].rstrip())
        if not names:
            lines.append("      nothing fulfils the conditions")
    return "\n".join(lines)


def label(item: Any) -> str:
    """How a person would name an item: by its file, its id, its row."""
    if not isinstance(item, dict):
        return str(item)
    name = next((str(item[field]) for field in ("file", "image_id", "id", "row") if field in item), str(item))
    return Path(name).name if "file" in item and Path(name).is_absolute() else name


def caption(item: Any) -> str:
    captions = item.get("captions") if isinstance(item, dict) else None
    return str(captions[0]) if isinstance(captions, list) and captions else ""


def draw_sheet(gallery: Any, encoder: Any, query: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Writes the contact sheet, and shows it on request."""
    import tempfile
    import webbrowser

    from hf_vse.embed.relevance import relevance
    from hf_vse.files import whole_file
    from hf_vse.plots import draw_relevance, plot_contact_sheet
    from hf_vse.search.pictures import find_images

    if not query["results"]:
        raise ValueError("there is nothing to draw_sheet: nothing fulfils the conditions")
    path = arguments.sheet or Path(tempfile.mkdtemp()) / "found.png"
    title = " + ".join(str(query[part]) for part in ("text", "image") if part in query)
    items = [result["item"] for result in query["results"]]
    labels = [f"{result['score']:.2f}  {label(result['item'])}" for result in query["results"]]
    photographs = find_images(gallery, items)
    if arguments.relevance:
        found = ((image, relevance(encoder, image, query["text"])) for image in photographs)
        photographs = [draw_relevance(image, each.cells, each.box) for image, each in found]
    with whole_file(path) as unfinished:
        plot_contact_sheet(title, photographs, labels, unfinished)
    print(f"contact sheet   {path}", file=sys.stderr)
    if arguments.open:
        webbrowser.open(path.absolute().as_uri())
