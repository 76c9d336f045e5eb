"""`hf-vse push`."""

import argparse
from collections.abc import Sequence

from hf_vse.cli.command import Result, bundled, command_parser

DESCRIPTION = """Publishes a model directory on the Hub: weights (safetensors), its code, processor, and a model card
generated from the run: recalls, curves, settings, how to load it. With --space also a demo page in the browser.
With --format the model in the format of another library, as `hf-vse export` writes it, with a card that says how that
library loads it: users need no code of ours.
An interrupted push can be repeated. Log in first with `hf auth login`."""
EXAMPLES = """
  hf-vse push runs/quickstart org/vse-scenes
  hf-vse push DIR org/vse-flickr8k --private --license apache-2.0
  hf-vse push runs/own_photos org/my-clip --format clip           # also siglip, ..., open_clip, sentence-transformers
  hf-vse push DIR org/vse-flickr8k --space org/try-vse --dataset org/my-photos"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("push", DESCRIPTION, EXAMPLES)
    parser.add_argument("directory", help="output directory of a run, or of `save_pretrained`")
    parser.add_argument("repo_id", help="organisation/name on the Hub")
    parser.add_argument("--private", action="store_true", default=None, help="visible to you alone")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help="transformers (or the family: clip, siglip, ...), sentence-transformers, open_clip, onnx [its own]",
    )
    parser.add_argument("--license", help="of the weights, such as apache-2.0; goes into the card")
    parser.add_argument(
        "--photographs", action="store_true", help="the retrieval picture too, if it shows photographs"
    )
    parser.add_argument("--revision", help="branch [main]")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--token", help="access token [the one of `hf auth login`]")
    parser.add_argument("--space", metavar="ORG/NAME", help="also publish the demo page for this model")
    parser.add_argument("--dataset", metavar="ORG/NAME", help="data set on the Hub whose photographs the page shows")
    arguments = parser.parse_args(argv)
    if (arguments.space is None) != (arguments.dataset is None):
        parser.error("--space and --dataset go together: the page needs photographs to show")
    if arguments.format is not None and (arguments.space is not None or arguments.photographs):
        parser.error("--format goes without --space and --photographs: the page loads the model in its own format")
    return arguments


def run(arguments: argparse.Namespace) -> Result:
    from hf_vse.hub.push import push_model
    from hf_vse.hub.space import check_space, push_space

    space = (bundled("spaces_demo"), arguments.space)
    shown = {"model": arguments.repo_id, "dataset": arguments.dataset}
    if arguments.space is not None:
        check_space(*space, **shown)  # before the model is sent
    names = ("private", "license", "revision", "create_pr", "token", "photographs", "format")
    url = push_model(arguments.directory, arguments.repo_id, **{name: getattr(arguments, name) for name in names})
    record, text = {"model": url}, f"model   {url}"
    if arguments.space is not None:
        record["space"] = push_space(*space, **shown, private=arguments.private, token=arguments.token)
        text += f"\nspace   {record['space']}"
    return Result(record, text)
