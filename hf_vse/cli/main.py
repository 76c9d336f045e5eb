"""`hf-vse`: one command for everything, from training to the demo in the browser.

The module of a command is imported only when it is used, and heavy libraries only when it runs, so help is fast. The
result goes to stdout, progress and log messages go to stderr. Every command module has

    parse(argv) -> Namespace       parses the arguments
    run(arguments) -> Result       runs the command
"""

import json
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module

from hf_vse import __version__
from hf_vse.cli.command import Result
from hf_vse.errors import refusal

COMMANDS = {
    "train": "train a model from a recipe",
    "evaluate": "measure image-text retrieval of a model",
    "features": "run an image tower once and save its outputs",
    "index": "encode images into a searchable gallery",
    "search": "find images by text, by image, or both",
    "serve": "answer searches of a gallery over HTTP",
    "link": "find the same records in two catalogues, or duplicates in one",
    "identify": "tell which thing of a labelled gallery a photograph shows, or none",
    "report": "write one page of the results of all runs",
    "export": "write a model in the format of another library",
    "push": "publish a model with its card on the Hub",
    "data": "publish a data set on the Hub, show one, or make two catalogues to link",
    "demo": "try a model in the browser",
}
SUCCESS, REFUSED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def overview() -> str:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return f"""usage: hf-vse COMMAND ...

Train, evaluate, publish and search visual-semantic embeddings.

commands:
{commands}

from scratch to a search in the browser:
  hf-vse train                                        the built-in data set, two minutes, no download
  hf-vse index my_photos my_index --model runs/quickstart
  hf-vse search my_index "a small red circle" --sheet found.png
  hf-vse demo --model runs/quickstart

`hf-vse COMMAND --help` explains a command with examples. All commands take --json for machine-readable output and
--quiet for no progress bars. Exit codes: {SUCCESS} success, {REFUSED} error (explained in one line), {MISUSED} wrong
command line, {INTERRUPTED} interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return SUCCESS if words else MISUSED
    if words[0] in ("-V", "--version"):
        print(f"hf_vse {__version__}")
        return SUCCESS
    if words[0] not in COMMANDS:
        print(f"hf-vse: unknown command {words[0]!r}; use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return MISUSED
    module = import_module(f"hf_vse.cli.{words[0]}")
    try:
        arguments = module.parse(words[1:])
    except SystemExit as leaving:  # argparse exits after help or a wrong command line
        return int(leaving.code or 0)
    return execute(module.run, arguments)


def execute(run, arguments: Namespace) -> int:
    prepare(arguments)
    try:
        with redirect_stdout(sys.stderr):  # output of libraries is not part of the result
            result = run(arguments)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume where possible", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message = refusal(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        if arguments.json:
            print(json.dumps({"error": message}))
        return REFUSED
    if result is not None and is_first_process():
        show(result, arguments.json)
        if result.refused:
            print(f"error: {result.refused}", file=sys.stderr)
            return REFUSED
    return SUCCESS


def prepare(arguments: Namespace) -> None:
    """Sets up logging and progress bars."""
    if arguments.quiet:
        os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    level = logging.INFO if is_first_process() and not arguments.quiet else logging.WARNING
    logging.getLogger("hf_vse").setLevel(level if is_first_process() else logging.ERROR)


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def show(result: Result, as_json: bool) -> None:
    """Prints the result; escapes text that stdout cannot encode, such as a file name that is not valid Unicode."""
    text = json.dumps(result.record, ensure_ascii=False) if as_json else result.text
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(result.record) if as_json else text.encode(encoding, "backslashreplace").decode(encoding)
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
