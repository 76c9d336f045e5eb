"""Every `from hf_vse... import name`, and the same of tests, leads to something that exists. Imports nothing.

Names of other packages, and all that is behind a dot, are not looked at.
"""

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("hf_vse", "tests")
FOLDERS = (*OURS, "scripts", "spaces_demo")


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


@cache
def statements(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def names_in(path: Path) -> set[str]:
    """All that is defined, imported or assigned anywhere in a file."""
    found = set()
    for node in statements(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def missing(path: Path) -> list[str]:
    """Lines `FILE:LINE: MODULE has no NAME`."""
    lines = []
    for node in statements(path):
        if not isinstance(node, ast.ImportFrom) or node.level > 1:
            continue
        module = node.module or ""
        if node.level:
            module = ".".join(filter(None, (*path.relative_to(ROOT).parent.parts, module)))
        if module.split(".")[0] not in OURS:
            continue
        place, file = f"{path.relative_to(ROOT)}:{node.lineno}", file_of(module)
        if file is None:
            lines.append(f"{place}: there is no module {module}")
            continue
        known = names_in(file)
        lines += [
            f"{place}: {module} has no {alias.name}"
            for alias in node.names
            if alias.name not in known and "__getattr__" not in known and file_of(f"{module}.{alias.name}") is None
        ]
    return lines


def main() -> None:
    files = [
        path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py")) if "old_formats" not in str(path)
    ]
    if lines := [line for path in files for line in missing(path)]:
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
