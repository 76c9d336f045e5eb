"""`hf-vse evaluate`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from hf_vse.cli.command import (
    Result,
    add_data_options,
    at_least_zero,
    command_parser,
    data_options,
    positive,
    read_lines,
)

DESCRIPTION = """Judges image-text retrieval of any model and writes the numbers with all that is needed to trust them.

A model is a folder or Hub id of hf_vse, of a dual encoder in transformers (CLIP, SigLIP, SigLIP2, ALIGN, BLIP, ...)
or in sentence-transformers; open_clip:NAME/WEIGHTS; a folder with two ONNX files; file.py:ClassName, an adapter of
your own; or embeddings: a safetensors file with image_embeds, text_embeds and text_to_image. Code that comes with a
model is not run unless you say so. COCO's 5,000 test images are reported under all protocols: 5K, the mean of five
folds of 1,000, CxC and ECCV Caption."""
EXAMPLES = """
  hf-vse evaluate runs/quickstart                                   the data it was trained on
  hf-vse evaluate openai/clip-vit-base-patch32 --dataset coco --data_dir DIR --report report
  hf-vse evaluate runs/nce runs/hardnce --split validation --report both    side by side, and is it real?
  hf-vse evaluate embeddings.safetensors --dataset flickr30k --data_dir DIR
  hf-vse evaluate DIR --foils sugarcrepe --foils_dir SUGARCREPE --foils_images COCO_VAL2017
  hf-vse evaluate DIR --labelled photos_by_class --json | jq .zero_shot.top1
  accelerate launch --num_processes 8 -m hf_vse.cli evaluate DIR    every process encodes a share"""
FOILS = (
    "auto", "none", "scenes", "captions", "vg_relation", "vg_attribution", "sugarcrepe", "winoground", "coco_order",
    "flickr30k_order",
)  # fmt: skip


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("evaluate", DESCRIPTION, EXAMPLES)
    parser.add_argument("names", nargs="*", metavar="model", help="one model, or several to compare")
    parser.add_argument("--model", action="append", default=[], help="the same")
    add_data_options(parser, None, "; default: as in training, or scenes")
    parser.add_argument("--split", default="test", help="train, validation or test [test]")
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
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... [what there is]")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the towers [float32]")
    group.add_argument("--kind", default="auto", help="what the model is, where it cannot be told [auto]")
    group.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")


def run(arguments: argparse.Namespace) -> Result | None:
    from hf_vse.evaluation.run import Loading, Questions, evaluate_models

    reported = arguments.report is not None
    foils = arguments.foils or ("auto" if reported else "none")
    questions = Questions(
        split=arguments.split,
        diagnostics=arguments.diagnostics or reported,
        foils=None if foils == "none" else foils,
        foils_dir=arguments.foils_dir,
        foils_images=arguments.foils_images,
        correction=arguments.correction,
        labelled=arguments.labelled,
        label_column=arguments.label_column,
        templates=None if arguments.templates is None else read_lines("templates", arguments.templates),
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        keep=arguments.embeddings,
        progress=not arguments.quiet,
    )
    loading = Loading(arguments.device, arguments.dtype, arguments.kind, arguments.trust_remote_code)
    evaluation = evaluate_models(arguments.models, arguments.dataset, questions, loading, **data_options(arguments))
    if evaluation is None:  # not the main process
        return None
    output = arguments.output or default_output(arguments)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(evaluation.record, indent=1), encoding="utf-8")
    text = f"{evaluation.table}\n\nnumbers   {output}"
    if reported:
        from hf_vse.report.page import write_report

        page = write_report(arguments.report, evaluation.judgements, evaluation.record, evaluation.pictures)
        text += f"\nreport    {page}"
    return Result(evaluation.record, text)


def default_output(arguments: argparse.Namespace) -> Path:
    """Beside a single model, or else where the command runs."""
    one = Path(arguments.models[0])
    folder = one if len(arguments.models) == 1 and one.is_dir() else Path(".")
    return folder / f"metrics_{arguments.split}.json"
