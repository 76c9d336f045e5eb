"""`hf-vse evaluate`."""

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_vse.cli.command import (
    Result,
    add_data_options,
    add_model_options,
    at_least_zero,
    command_parser,
    data_options,
    model_options,
    positive,
    read_lines,
)
from hf_vse.errors import refusal
from hf_vse.files import check_output_file, write_json

if TYPE_CHECKING:
    from hf_vse.evaluation.run import Evaluation, Loading, Questions

logger = logging.getLogger(__name__)

DESCRIPTION = """Judges image-text retrieval of any model and writes the numbers with all that is needed to trust them.

A model is a folder or Hub id of hf_vse, of a dual encoder in transformers (CLIP, SigLIP, SigLIP2, ALIGN, BLIP, ...)
or in sentence-transformers; open_clip:NAME/WEIGHTS or a folder of open_clip; a folder with two ONNX files;
several of these joined by +, whose cosines are averaged; file.py:ClassName, an adapter of your own; or embeddings: a
safetensors file with image_embeds, text_embeds and text_to_image. Code that comes with a model is not run unless you
say so. COCO's 5,000 test images are reported under all protocols: 5K, the mean of five folds of 1,000, CxC and ECCV
Caption."""
EXAMPLES = """
  hf-vse evaluate runs/quickstart                                   the data it was trained on
  hf-vse evaluate openai/clip-vit-base-patch32 --dataset coco --data_dir DIR --report report
  hf-vse evaluate runs/nce runs/hardnce --split validation --report both    side by side, and is it real?
  hf-vse evaluate runs/mine --by place --by year                    recalls for the values of a field
  hf-vse evaluate embeddings.safetensors --dataset flickr30k --data_dir DIR
  hf-vse evaluate DIR --foils sugarcrepe --foils_dir SUGARCREPE --foils_images COCO_VAL2017
  hf-vse evaluate DIR --labelled photos_by_class --json | jq '.metrics[].zero_shot.top1'
  hf-vse evaluate DIR --dataset imagefolder --data_dir things --split train --identify --distractors other_photos
  accelerate launch --num_processes 8 -m hf_vse.cli evaluate DIR    every process encodes a share"""
FOILS = (
    "auto", "none", "scenes", "captions", "vg_relation", "vg_attribution", "sugarcrepe", "winoground", "coco_order",
    "flickr30k_order",
)  # fmt: skip
OF_A_MODEL = ("foils", "labelled", "correction", "embeddings", "device", "dtype", "trust_remote_code")
OF_DATA = ("data_dir", "split_file", "features", "image_column", "caption_column", "split", "by")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("evaluate", DESCRIPTION, EXAMPLES)
    parser.add_argument("names", nargs="*", metavar="model", help="one model, or several to compare")
    parser.add_argument("--model", action="append", default=[], help="the same")
    add_data_options(parser, None, "; default: as in training, or scenes")
    parser.add_argument("--split", help="train, validation or test [test]")
    parser.add_argument("--output", type=Path, help="JSON file to write [metrics_SPLIT.json in the model's folder]")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page to read there, with the reasons")
    add_questions(parser)
    add_execution(parser)
    arguments = parser.parse_args(argv)
    arguments.models = [*arguments.names, *arguments.model]
    if not arguments.models:
        parser.error("give one model or several: folders, Hub ids, or files of embeddings")
    return arguments


def add_questions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what else to ask")
    group.add_argument(
        "--by", action="append", default=[], metavar="FIELD", help="recalls for each value of a field of the data, too"
    )
    group.add_argument("--diagnostics", action="store_true", help="look for the reasons (with --report always)")
    group.add_argument(
        "--foils",
        choices=FOILS,
        help="false captions to tell from true ones: exact ones of scenes, by rules from the captions, or published "
        "ones [none; with --report auto: exact ones or by rules]",
    )
    group.add_argument("--foils_dir", metavar="DIR", help="where the published files of foils lie")
    group.add_argument("--foils_images", metavar="DIR", help="where their photographs lie [in foils_dir]")
    group.add_argument(
        "--labelled", metavar="DIR", help="zero-shot classification: a folder of class folders, a data set or Hub id"
    )
    group.add_argument("--label_column", metavar="NAME", help="column of the labels, where its name does not tell")
    group.add_argument(
        "--identify",
        action="store_true",
        help="recognise things with one example each: those of --labelled, else of a column of the data",
    )
    group.add_argument("--entity", metavar="COLUMN", help="that column [group_column of the data, else entity]")
    group.add_argument("--references", type=positive, metavar="N", help="examples of a thing [1]")
    group.add_argument("--distractors", metavar="DIR", help="images of other things, which are references too")
    group.add_argument("--templates", type=Path, metavar="FILE", help="sentences with {}, one in each line")
    group.add_argument(
        "--correction",
        choices=("qbnorm", "inverted_softmax"),
        help="also the numbers with this correction of hubs at query time, from captions of the training split",
    )


def add_execution(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("execution")
    group.add_argument("--batch_size", type=positive, default=128, help="images or sentences encoded at once [128]")
    group.add_argument("--num_workers", type=at_least_zero, default=0, help="processes that decode images [0]")
    group.add_argument(
        "--embeddings", type=Path, metavar="DIR", help="keep embeddings there: an interrupted run goes on"
    )
    group.add_argument("--kind", default="auto", help="what the model is, where it cannot be told [auto]")
    add_model_options(group)


def run(arguments: argparse.Namespace) -> Result | None:
    from hf_vse.evaluation.run import Loading, evaluate_models
    from hf_vse.evaluation.tables import evaluation_table

    check_embeddings_asked(arguments)
    arguments.split = arguments.split or "test"
    output = check_outputs(arguments)
    questions = questions_of(arguments)
    loading = Loading(kind=arguments.kind, **model_options(arguments))
    evaluation = evaluate_models(arguments.models, arguments.dataset, questions, loading, **data_options(arguments))
    if evaluation is None:  # not the main process
        return None
    encoders = partial(encoders_that_show_where, arguments.models, loading)
    lines, refused = write_outputs(evaluation, output, arguments.report, encoders)
    table = evaluation_table(evaluation.document)
    return Result(evaluation.document, "\n".join([f"{table}\n", *lines]), refused)


def check_embeddings_asked(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that do nothing where embeddings take the place of a model, or of data too."""
    from hf_vse.evaluation.given import holds_embeddings

    given = [name for name in arguments.models if holds_embeddings(name)]
    if not given:
        return
    useless = [option for option in OF_A_MODEL if getattr(arguments, option) not in (None, False, "none")]
    useless = useless if len(given) == len(arguments.models) else []
    if arguments.dataset is None:
        useless += [option for option in OF_DATA if getattr(arguments, option) not in (None, [])]
    if useless:
        remedy = "leave it out" if useless[0] in OF_A_MODEL else "leave it out, or add --dataset"
        raise ValueError(f"--{useless[0]} has no effect: {given[0]} holds embeddings and no model; {remedy}")


def check_outputs(arguments: argparse.Namespace) -> Path:
    """Where the numbers go, if everything that is asked for can be written: noticed now, not after the work."""
    one = Path(arguments.models[0])
    beside = one if len(arguments.models) == 1 and one.is_dir() else Path(".")
    output = check_output_file("output", arguments.output or beside / f"metrics_{arguments.split}.json")
    if output.is_file() and output.stat().st_size and not is_evaluation(output):
        raise ValueError(f"output {output} is there and holds no evaluation: give another --output, or remove it")
    if arguments.report is not None:
        from hf_vse.report.page import check_report

        check_report(arguments.report)
    return output


def is_evaluation(path: Path) -> bool:
    """Whether a file is what this command wrote, and neither the record of a training nor somebody's own."""
    from hf_vse.evaluation.record import read_evaluation

    try:
        return "stages" not in read_evaluation(path)
    except ValueError:
        return False


def questions_of(arguments: argparse.Namespace) -> "Questions":
    from hf_vse.evaluation.run import Questions

    reported = arguments.report is not None
    foils = arguments.foils or ("auto" if reported else "none")
    return Questions(
        split=arguments.split,
        by=arguments.by,
        diagnostics=arguments.diagnostics or reported,
        foils=None if foils == "none" else foils,
        foils_dir=arguments.foils_dir,
        foils_images=arguments.foils_images,
        correction=arguments.correction,
        labelled=arguments.labelled,
        label_column=arguments.label_column,
        **{name: getattr(arguments, name) for name in ("identify", "entity", "references", "distractors")},
        templates=None if arguments.templates is None else read_lines("templates", arguments.templates),
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        keep=arguments.embeddings,
        progress=not arguments.quiet,
    )


def encoders_that_show_where(models: Sequence[str], loading: "Loading") -> list[Any]:
    """The models of this package, opened again for the page; None for each other one."""
    from hf_vse.embed.load import kind_of, load_encoder
    from hf_vse.evaluation.given import holds_embeddings

    def shows(name: str) -> bool:
        if holds_embeddings(name):
            return False
        return (kind_of(name) if loading.kind == "auto" else loading.kind) == "vse"

    return [load_encoder(name, **vars(loading)) if shows(name) else None for name in models]


def write_outputs(
    evaluation: "Evaluation", output: Path, report: Path | None, encoders: Callable[[], list[Any]] = list
) -> tuple[list[str], str]:
    """Numbers first, then the page; what fails takes nothing with it that has been computed.

    Args:
        encoders: gives those of the judgements, for the page.

    Returns:
        Lines that say where things are, and what could not be written.
    """
    lines, refused = [], []

    def attempt(title: str, what: str, write: Any) -> None:
        try:
            lines.append(f"{title:<9} {write()}")
        except Exception as error:
            reason = refusal(error)
            if reason is None:
                logger.exception("%s could not be written", what)
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            refused.append(f"{what} could not be written ({reason})")

    def numbers() -> Path:
        write_json(output, evaluation.document)
        return output

    def page(path: Path) -> Path:
        from hf_vse.report.page import write_report

        return write_report(path, evaluation.judgements, evaluation.document, evaluation.images, encoders())

    attempt("numbers", "the numbers", numbers)
    if report is not None:
        attempt("report", "the report", lambda: page(report))
    return lines, "; ".join(refused)
