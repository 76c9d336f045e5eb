"""The house rules of the package, read from its imports."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hf_vse

PACKAGE = Path(hf_vse.__file__).parent
# A folder may import those in its row, and itself.
MAY_IMPORT = {
    "model": set(),
    "objectives": {"model"},
    "data": {"model"},
    "embed": {"model", "data"},
    "search": {"model", "data", "embed"},
    "evaluation": {"model", "data", "embed"},
    "hub": {"model", "data", "evaluation"},
    "plots": set(),
    "errors": set(),
    "files": set(),
    "report": {"model", "data", "embed", "evaluation", "plots"},
    "training": {"model", "objectives", "data", "embed", "evaluation", "hub", "plots"},
    "cli": {
        "model",
        "objectives",
        "data",
        "embed",
        "evaluation",
        "hub",
        "plots",
        "report",
        "search",
        "training",
        "errors",
    },
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_modules(path: Path) -> list[tuple[int, str]]:
    """Level (leading dots) and name of everything a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


EVERYWHERE = {"files"}  # but not in the published model, which imports its siblings alone


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_in_one_direction(path):
    own = part_of(path)
    assert own in MAY_IMPORT, f"{own} has no place in the architecture"
    for level, name in imported_modules(path):
        if level == 0 and name.startswith("hf_vse."):
            part = name.split(".")[1]
            allowed = MAY_IMPORT[own] | (EVERYWHERE if own != "model" else set())
            assert part == own or part in allowed, f"{own} must not import {name}"


PAYLOAD = sorted((PACKAGE / "model").glob("*_vse.py"))


@pytest.mark.parametrize("path", PAYLOAD, ids=lambda path: path.name)
def test_payload_imports_only_siblings_and_what_every_user_has(path):
    allowed = {"torch", "transformers", "numpy", "huggingface_hub"} | sys.stdlib_module_names
    for level, name in imported_modules(path):
        if level == 0:
            assert name.split(".")[0] in allowed, name
        else:
            assert level == 1 and name and "." not in name, f"from {'.' * level}{name}: flat siblings only"
            assert (PACKAGE / "model" / f"{name}.py").is_file()


@pytest.mark.parametrize("path", PAYLOAD, ids=lambda path: path.name)
def test_payload_text_does_not_look_like_a_nested_import(path):
    """transformers finds the files to upload with a regular expression that reads docstrings as well."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import)\s+(\.\w+\.|\.\s|hf_vse)", text, flags=re.MULTILINE)


def test_nothing_unpickles():
    forbidden = re.compile(r"\bpickle\b|torch\.load\(|joblib|allow_pickle=True")
    for path in [*FILES, *(PACKAGE.parent / "scripts").rglob("*.py")]:
        code = "\n".join(line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
        code = re.sub(r'"""[\s\S]*?"""', "", code)
        assert not forbidden.search(code), path


def test_importing_the_package_imports_no_torch():
    command = "import sys, hf_vse; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_public_names_exist():
    for name in hf_vse.__all__:
        assert getattr(hf_vse, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'VSEModle'; it has DualEncoder, Encoder, Execution"):
        _ = hf_vse.VSEModle


def test_scripts_are_short():
    for path in (PACKAGE.parent / "scripts").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80, path


def test_every_package_is_installed():
    """`pyproject.toml` names them, because recipes and the demo come from beside the package."""
    described = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert found <= set(described["packages"])
    for name, folder in described["package-dir"].items():
        assert name in described["packages"] and any((PACKAGE.parent / folder).iterdir())
