"""The commands of `hf-vse` for the page that lists them: what each does, and the examples of its help."""

from importlib import import_module
from textwrap import dedent

from hf_vse.cli.main import COMMANDS


def commands_section() -> str:
    lines = []
    for name, what in COMMANDS.items():
        examples = dedent(import_module(f"hf_vse.cli.{name}").EXAMPLES).strip("\n")
        lines += [f"## {name}", "", f"`hf-vse {name}`: {what}.", "", "```text", examples, "```", ""]
    return "\n".join(lines).rstrip("\n")
