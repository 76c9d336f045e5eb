"""Cases of bad input, each through the command in this process, as a person would meet it.

A file holds its `CASES`, made by rules, and ends with `test_one_clear_line = one_clear_line(CASES)`. What is refused
ends with exit code 1 (2 for a wrong command line), prints one line that says why and names the remedy, and writes
nothing. What is accepted ends with 0.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from hf_vse.cli.main import main
from tests.faults.killing import SOAK

MANY = 60
COMMAND_ERROR = re.compile(r"^(error: |hf-vse [a-z]+: error: |hf-vse: )")


class Parts(NamedTuple):
    """Good things to begin with, shared by all cases: nobody writes into them.

    `model` and `photographs` as the fixtures of `conftest.py` make them (12 pictures, metadata.jsonl), `gallery` the
    index of these by the model.
    """

    model: Path
    photographs: Path
    gallery: Path


class Case(NamedTuple):
    """One case.

    Args:
        name: unique; group/what is wrong.
        arrange: makes the bad thing in an empty folder, of the good `Parts`; returns the command line.
        says: regular expression that the line must match: the file, the field or the value that is wrong.
        accepted: the input looks odd and is right: the command must succeed.
        may_write: names in the folder that the command may write although it refuses (such as a cache).
    """

    name: str
    arrange: Callable[[Parts, Path], list[str]]
    says: str = ""
    accepted: bool = False
    may_write: tuple[str, ...] = ()


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file and folder."""
    files = sorted(path for path in folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in files}


def check(case: Case, parts: Parts, folder: Path, capfd) -> None:
    """Runs one case and asserts what every case promises."""
    words = case.arrange(parts, folder)
    before = snapshot(folder)
    capfd.readouterr()
    code = main(words)  # an exception here is a traceback that a person would see
    said = capfd.readouterr().err
    assert "Traceback" not in said, said
    if case.accepted:
        assert code == 0, said
        return
    assert code in (1, 2), f"exit code {code}\n{said}"
    lines = [line for line in said.splitlines() if COMMAND_ERROR.match(line)]
    assert len(lines) == 1, said
    assert re.search(case.says, lines[0]), lines[0]
    assert len(lines[0]) < 600, lines[0]
    after = snapshot(folder)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    unexpected = {name for name in changed if not name.startswith(case.may_write or ("\0",))}
    assert not unexpected, f"written although refused: {sorted(unexpected)}"


def one_clear_line(cases: Sequence[Case]) -> Callable:
    """The test of a file: each of its cases, see `check`; of many every fifth one, unless `make soak` runs them."""
    assert len({case.name for case in cases}) == len(cases), "every case has a name of its own"
    cases = cases if SOAK or len(cases) <= MANY else cases[::5]
    names = [case.name for case in cases]

    @pytest.mark.parametrize("case", cases, ids=names)
    def test_one_clear_line(case, parts, tmp_path, capfd):
        check(case, parts, tmp_path / "here", capfd)

    return test_one_clear_line
