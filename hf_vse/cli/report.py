"""`hf-vse report`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_vse.cli.command import Result, command_parser

DESCRIPTION = """Writes one page of all results: a table and a chart for each test set, the seeds of a recipe in one
row, and in what the recipes differ. Only results on the same images and captions stand in one table."""
EXAMPLES = """
  hf-vse report runs                                    every metrics.json below the folder -> results/index.html
  hf-vse report runs clip.json --output compared        and what `hf-vse evaluate --output clip.json` wrote"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("report", DESCRIPTION, EXAMPLES)
    parser.add_argument("paths", nargs="+", type=Path, metavar="path", help="folders of runs, files of evaluations")
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR", help="for the page [results]")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> Result:
    from hf_vse.files import read_json
    from hf_vse.report.page import RECORD_FILE
    from hf_vse.report.results import write_results

    page, tables = write_results(arguments.output, arguments.paths)
    best = [
        f"  {title}: {results[0].name} {results[0].mean('rsum'):.1f}, the best of {len(results)}"
        for title, results in tables.items()
    ]
    record = read_json(page.with_name(RECORD_FILE)) | {"page": str(page)}
    return Result(record, "\n".join([f"page: {page}", "rsum:", *best]))
