"""Fills the tables in the README and the pages from recorded results, so that no number is typed by hand.

    python scripts/readme_tables.py            # writes README.md, docs/pages/ and recipes/methods/README.md
    python scripts/readme_tables.py --check    # fails if one would change

A table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; each is on one page at least. A result is the
`metrics.json` of a run, stored in `scripts/benchmarks/results/` without the data path.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from benchmarks.commands_table import commands_section
from benchmarks.engine_tables import ENGINE_TABLES
from benchmarks.equality_table import equality_table
from benchmarks.linking_table import LINK_TABLES
from benchmarks.methods import METHODS, methods_table
from benchmarks.models_table import clipping_table, fields_table, models_table, sizes_table
from benchmarks.start_tables import START_TABLES
from benchmarks.tables import TABLES

ROOT = Path(__file__).parents[1]
TABLES = TABLES | ENGINE_TABLES | LINK_TABLES | START_TABLES
TABLES = TABLES | {
    "models": models_table,
    "models_224": lambda: models_table("flickr8k_models_224"),
    "sizes": sizes_table,
    "fields": fields_table,
    "clipping": clipping_table,
    "methods": methods_table,
    "commands": commands_section,
    "equality": equality_table,
}
FILES = (ROOT / "README.md", *sorted((ROOT / "scripts/docs/pages").glob("*.md")), METHODS / "README.md")
BEGIN = re.compile(r"<!-- (\w+):begin -->")


def fill(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n{content}\n{end}{after}"


def filled(path: Path) -> tuple[str, set[str]]:
    """The text of a file with its tables as they should be, and their names; links lead from the file's folder."""
    text = path.read_text(encoding="utf-8")
    names = BEGIN.findall(text)
    scripts = os.path.relpath(ROOT / "scripts", path.parent)
    for name in names:
        text = fill(text, name, TABLES[name]().replace("](scripts/", f"]({scripts}/"))
    return text, set(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is out of date")
    check = parser.parse_args().check
    missing = set(TABLES)
    for path in FILES:
        new, names = filled(path)
        missing -= names
        if check and new != path.read_text(encoding="utf-8"):
            sys.exit(f"{path} is out of date: run python scripts/readme_tables.py")
        if not check:
            path.write_text(new, encoding="utf-8")
    if missing:
        sys.exit(f"no page has the tables {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
