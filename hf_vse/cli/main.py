"""`hf-vse`: one command for everything, from training to the page in the browser.

A command's module is imported when it is asked for, and heavy libraries when it runs: help comes at once. What is
asked for goes to the standard output, progress and remarks to the standard error. Every module has

    parse(argv) -> Namespace       its arguments
    run(arguments) -> Result       what it does
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
    "train": "train a model as a recipe says",
    "evaluate": "measure image-text retrieval of a model",
    "features": "run an image tower once and keep its outputs",
    "index": "encode photographs into a gallery to search",
    "search": "find photographs by a sentence, a photograph, or both",
    "push": "publish a model on the Hub, with its card",
    "data": "publish a data set on the Hub, or look at one",
    "demo": "try a model in the browser",
}
SUCCESS, REFUSED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def overview() -> str:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return f"""usage: hf-vse COMMAND ...

Train, evaluate, publish and search visual-semantic embeddings.

commands:
{commands}

from nothing to a search in the browser:
  hf-vse train                                        the built-in data set, two minutes, no download
  hf-vse index my_photos my_index --model runs/quickstart
  hf-vse search my_index "a small red circle" --sheet found.png
  hf-vse demo --model runs/quickstart

`hf-vse COMMAND --help` explains a command with examples. All take --json for output that programs read, and
--quiet for no progress bars. Exit codes: {SUCCESS} done, {REFUSED} not possible (one line says why), {MISUSED} wrong
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
        print(f"hf-vse: there is no command {words[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return MISUSED
    module = import_module(f"hf_vse.cli.{words[0]}")
    try:
        arguments = module.parse(words[1:])
    except SystemExit as leaving:  # help, or a misused command line, as argparse has it
        return int(leaving.code or 0)
    return execute(module.run, arguments)


def execute(run, arguments: Namespace) -> int:
    prepare(arguments)
    try:
        with redirect_stdout(sys.stderr):  # what libraries print is no result
            result = run(arguments)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here where it can", file=sys.stderr)
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
    """Logging, and progress bars as asked for."""
    if arguments.quiet:
        os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    level = logging.INFO if is_first_process() and not arguments.quiet else logging.WARNING
    logging.getLogger("hf_vse").setLevel(level if is_first_process() else logging.ERROR)


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def show(result: Result, as_json: bool) -> None:
    """Prints it; what the terminal or the pipe cannot hold, such as a file name that is no Unicode, is escaped."""
    text = json.dumps(result.record, ensure_ascii=False) if as_json else result.text
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(result.record) if as_json else text.encode(encoding, "backslashreplace").decode(encoding)
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
