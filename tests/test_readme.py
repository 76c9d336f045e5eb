"""The README says what was measured, and names what exists."""

import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_recorded_results(monkeypatch):
    scripts = ROOT / "scripts"
    monkeypatch.setattr(sys, "argv", ["readme_tables.py", "--check"])
    monkeypatch.syspath_prepend(scripts)
    runpy.run_path(str(scripts / "readme_tables.py"), run_name="__main__")  # exits with a line if one is out of date


def test_files_and_commands_that_it_names_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    scripts = re.findall(r"\bscripts/[\w/]+\.(?:py|yaml)", README)
    assert len(links) >= 2 and len(scripts) >= 5
    for path in {*links, *scripts}:
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)
    assert targets == ["quickstart", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
