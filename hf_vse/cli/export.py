"""`hf-vse export`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_vse.cli.command import Result, command_parser

DESCRIPTION = """Writes a model in the format of another library, which loads it without hf_vse. A model that started
as CLIP, SigLIP, ... goes back into its own format, or into that of sentence-transformers; CLIP, and the SigLIP models
whose image tower timm has too, into that of open_clip; every model can be written as two ONNX files. The folder is
loaded by its library and compared with the model."""
EXAMPLES = """
  hf-vse export runs/own_photos --format transformers --output my_clip
  hf-vse export runs/own_photos --format sentence-transformers --output my_clip_st
  hf-vse export runs/own_photos --format open_clip --output my_open_clip
  hf-vse export runs/quickstart --format onnx --output onnx"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("export", DESCRIPTION, EXAMPLES)
    parser.add_argument("directory", help="output directory of a run, of `save_pretrained`, or a Hub id")
    parser.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        help="transformers (or the family: clip, siglip, ...), sentence-transformers, open_clip, onnx",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--no_check", action="store_true", help="do not load the result and compare it")
    parser.add_argument(
        "--by_region", action="store_true", help="onnx: features are sets of regions, not one vector each"
    )
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> Result:
    from hf_vse.embed.adapters.vse import VSEEncoder
    from hf_vse.hub.export import export_model

    encoder = VSEEncoder.from_pretrained(arguments.directory, "cpu")
    record = export_model(
        encoder,
        arguments.format,
        arguments.output,
        check=not arguments.no_check,
        by_region=arguments.by_region,
    )
    found = record["largest_difference"]
    verdict = "not compared" if found is None else f"vectors differ by at most {found:.1e}"
    return Result(record, f"{record['format']}   {arguments.output}   {verdict}")
