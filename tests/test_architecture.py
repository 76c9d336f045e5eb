"""The house rules of the package, read from its imports."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_vse

PACKAGE = Path(hf_vse.__file__).parent


def rooms_that_may_be_imported() -> dict[str, set[str]]:
    """The table in `hf_vse/README.md`: room -> rooms, or single files of them, that it may import."""
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- imports:begin -->")[1].split("<!-- imports:end -->")[0]
    rows = [re.findall(r"`([\w.]+)`", line) for line in table.strip().splitlines()[2:]]
    return {room: set(allowed) for room, *allowed in rows}


MAY_IMPORT = rooms_that_may_be_imported()
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


EVERYWHERE = {"deprecation", "files"}  # but not in the published model, which imports its siblings alone


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_the_table_of_imports_names_every_room_and_has_no_circle():
    assert set(MAY_IMPORT) == {part_of(path) for path in FILES}
    rooms = {room: {name.split(".")[0] for name in allowed} for room, allowed in MAY_IMPORT.items()}
    list(TopologicalSorter(rooms).static_order())  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_in_one_direction(path):
    own = part_of(path)
    assert own in MAY_IMPORT, f"{own} is not in the table of imports in hf_vse/README.md"
    for level, name in imported_modules(path):
        if level == 0 and name.startswith("hf_vse."):
            part = name.split(".")[1]
            allowed = MAY_IMPORT[own] | (EVERYWHERE if own != "model" else set())
            chosen = {part, name.removeprefix("hf_vse.")} & allowed
            assert part == own or chosen, f"{own} must not import {name}"


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


def test_one_function_tells_of_old_names():
    for path in CODE:
        told = path.name == "deprecation.py" or "DeprecationWarning" not in path.read_text(encoding="utf-8")
        assert told, f"{path}: call hf_vse.deprecation.deprecated"


def test_importing_the_package_imports_no_torch():
    command = "import sys, hf_vse; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore:DualEncoder is now Encoder:DeprecationWarning")
def test_public_names_exist():
    for name in hf_vse.__all__:
        assert getattr(hf_vse, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'VSEModle'; it has DualEncoder, Encoder, Execution"):
        _ = hf_vse.VSEModle


def test_scripts_are_short():
    for path in (PACKAGE.parent / "scripts").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80, path


CODE = [*FILES, *sorted(path for room in ("scripts", "spaces_demo") for path in (PACKAGE.parent / room).rglob("*.py"))]
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documentation = len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert node.end_lineno - node.lineno + 1 - documentation <= MOST_LINES_OF_A_FUNCTION, node.name


MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
}
# Imports inside a function that would close a circle at the top of the file: (importing, imported).
CLOSING_A_CIRCLE = {
    ("hf_vse.search.gallery", "hf_vse.search.build"),  # GalleryIndex.build is a shorthand
    ("hf_vse.embed.encoder", "hf_vse.embed.load"),  # Encoder.from_pretrained is one
}


def imports_of(module: str, inside_functions: bool) -> set[str]:
    """The modules of the package that a module imports when it is imported itself, or also when its functions run."""
    found = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = f"{module.rpartition('.')[0]}." if child.level else ""
                found.add(base + child.module)
                found.update(f"{base}{child.module}.{alias.name}" for alias in child.names)
            if inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child)

    visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return found & MODULES.keys() - {module}


def test_imports_make_no_circle():
    order = TopologicalSorter({module: imports_of(module, inside_functions=False) for module in MODULES})
    order.prepare()  # raises CycleError, which names the circle


def test_imports_inside_functions_make_no_circle():
    graph = {module: imports_of(module, inside_functions=True) for module in MODULES}
    for importing, imported in CLOSING_A_CIRCLE:
        graph[importing].discard(imported)
    TopologicalSorter(graph).prepare()


# Public names that stand for different things in different files, and why they may.
ONE_NAME_FOR_SEVERAL = {
    "parse": "every command has one",
    "run": "every command has one",
}


def test_a_name_means_one_thing():
    """Classes and functions that another file may import."""
    places = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    several = {name: found for name, found in places.items() if len(found) > 1}
    for name in ONE_NAME_FOR_SEVERAL:
        several.pop(name, None)
    assert not several, "choose another name, or import the one that is there"


def test_every_package_is_installed():
    """`pyproject.toml` names them, because recipes and the demo come from beside the package."""
    described = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert found <= set(described["packages"])
    for name, folder in described["package-dir"].items():
        assert name in described["packages"] and any((PACKAGE.parent / folder).iterdir())


def test_every_file_beside_the_code_is_installed():
    """Templates and style sheets are data of their package, or an installed wheel lacks them."""
    described = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = described["package-data"]
    beside = [path for path in PACKAGE.rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {"card.md.j2", "data_card.md.j2"} <= {path.name for path in beside}
    for path in beside:
        package = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        assert any(path.match(pattern) for pattern in patterns.get(package, [])), f"package-data lacks {path}"
