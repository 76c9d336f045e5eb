"""The README and the pages say what was measured, name what exists, and show commands and code that work.

A block of `bash` or `python` is run, in a folder where every name it mentions is something tiny. One below a comment
`<!-- parsed, not run: WHY -->` goes only through the parsers of its commands, or the compiler.
"""

import ast
import re
import runpy
import shlex
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import pytest
import torch

import hf_vse
from hf_vse.cli.main import COMMANDS, main
from hf_vse.training.recipe import parse_command_line

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "scripts/docs/pages").glob("*.md"))]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
OTHERS = [ROOT / "hf_vse/README.md", ROOT / "scripts/benchmarks/README.md", ROOT / "scripts/recipes/methods/README.md"]


def test_tables_are_those_of_the_recorded_results(monkeypatch):
    scripts = ROOT / "scripts"
    monkeypatch.setattr(sys, "argv", ["readme_tables.py", "--check"])
    monkeypatch.syspath_prepend(scripts)
    runpy.run_path(str(scripts / "readme_tables.py"), run_name="__main__")  # exits with a line if one is out of date


def anchors(text: str) -> set[str]:
    """Of the headings of a page, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_exist(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("http"):
            target, _, anchor = link.partition("#")
            there = (path.parent / target) if target else path
            assert there.exists(), link
            assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), link
    for name in re.findall(r"\b(?:scripts|tests|hf_vse)/[\w/]+\.(?:py|yaml)", text):
        assert (ROOT / name).exists(), name


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(TEXTS[README].splitlines()) <= 180
    assert re.findall(r"^make ([\w-]+)", TEXTS[README], flags=re.M) == ["quickstart", "test"]
    for path in PAGES[1:]:
        assert f"](scripts/docs/pages/{path.name})" in TEXTS[README], path.name
        assert re.search(rf": {path.name}$", (ROOT / "scripts/docs/mkdocs.yml").read_text(), flags=re.M), path.name


def test_the_reference_has_every_public_name():
    shown = re.findall(r"^::: (hf_vse[\w.]+)\.(\w+)$", TEXTS[ROOT / "scripts/docs/pages/reference.md"], flags=re.M)
    assert all(hasattr(import_module(module), name) for module, name in shown)
    assert sorted(name for _, name in shown) == sorted(set(hf_vse.__all__) - {"DualEncoder"})  # its name in 0.1


class Block(NamedTuple):
    path: Path
    line: int
    language: str
    code: str
    is_run: bool

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for path, text in TEXTS.items():
        for each in re.finditer(r"(?:^<!-- ([^\n]+) -->\n)?^```(bash|python)\n(.*?)^```$", text, flags=re.M | re.S):
            marker = each[1] or ""
            reason = re.fullmatch(r"parsed, not run: (.{10,})", marker)
            assert reason or "run" not in marker, f"{path}: <!-- {marker} --> is not `parsed, not run: WHY`"
            found.append(Block(path, text[: each.start(2)].count("\n") + 1, each[2], each[3], not reason))
    return found


BLOCKS = blocks()
LOCAL = ("runs/quickstart", "runs/own_photos", "org/vse-flickr8k", "google/siglip-base-patch16-224")


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_photographs, tiny_model):
    """A folder for each page with what its blocks name: models, all of them one tiny one, photographs, the scripts."""
    places: dict[Path, Path] = {}

    def of(page: Path) -> Path:
        if page not in places:
            folder = places[page] = tmp_path_factory.mktemp(page.stem)
            for name in LOCAL:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).symlink_to(tiny_model)
            (folder / "scripts").symlink_to(ROOT / "scripts")
            (folder / "DIR").mkdir()
            make_photographs(folder).rename(folder / "my_photos")
            PIL.Image.new("RGB", (40, 40), "teal").save(folder / "beach.jpg")
        return places[page]

    return of


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.is_run], ids=str)
def test_a_block_runs(block, place, monkeypatch):
    monkeypatch.chdir(place(block.path))
    if block.language == "python":
        embeds = torch.eye(4)
        given = {"photos": [PIL.Image.new("RGB", (40, 40))] * 2, "image_embeds": embeds, "text_embeds": embeds}
        exec(compile(block.code, str(block), "exec"), given | {"ids": torch.tensor([0, 0, 1, 2])})
    else:
        for program, *words in commands(block.code):
            assert program == "hf-vse" and main([*words, "--quiet"]) == 0, words


@pytest.mark.parametrize("block", [each for each in BLOCKS if not each.is_run], ids=str)
def test_a_block_that_is_not_run_parses(block, place, monkeypatch):
    monkeypatch.chdir(place(block.path))
    monkeypatch.setattr("hf_vse.cli.index.holds_gallery", "my_index".__eq__)  # also where no block has made it yet
    if block.language == "python":
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and node.module == "hf_vse":
                assert {each.name for each in node.names} <= set(hf_vse.__all__)
    else:
        for words in commands(block.code):
            check_command(words, monkeypatch)


def commands(code: str) -> list[list[str]]:
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def check_command(words: list[str], monkeypatch) -> None:
    """Raises, or exits as the command would, where its own parser refuses it."""
    program, *words = words
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.M), words
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[0] == "install" and set(re.findall(r"\w+", words[-1].partition("[")[2])) <= set(extras)
    elif program == "hf-vse":
        check_hf_vse(*words)
    elif program == "python" and words[0] == "scripts/reproduce_table.py":
        monkeypatch.syspath_prepend(ROOT / "scripts")
        monkeypatch.setattr(sys, "argv", words)
        arguments, _ = runpy.run_path(words[0])["parse_arguments"]()
        assert arguments.grid.is_file()
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launch = launch_command_parser().parse_args(words[1:])
        assert words[0] == "launch" and (launch.config_file is None or Path(launch.config_file).is_file())
        script = {"scripts/train.py": ["train"], "hf_vse.cli": []}[launch.training_script]
        check_hf_vse(*script, *launch.training_script_args)
    else:
        pytest.fail(f"nothing here knows how to parse {program} {words}")


def check_hf_vse(command: str, *words: str) -> None:
    assert command in COMMANDS
    arguments = import_module(f"hf_vse.cli.{command}").parse(words)
    if command == "train":
        from hf_vse.cli.train import recipe_file

        recipe = recipe_file("quickstart" if arguments.recipe == "RECIPE" else arguments.recipe)
        parse_command_line([str(recipe), *arguments.overrides], recipe)
