"""Fills the tables in the README from recorded results, so that no number is typed by hand.

    python scripts/readme_tables.py            # writes README.md, and the table of recipes/methods/README.md
    python scripts/readme_tables.py --check    # fails if it would change

A result is the `metrics.json` of a run, stored in `scripts/benchmarks/results/` without the data path.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.methods import METHODS, methods_table
from benchmarks.models_table import clipping_table, models_table
from benchmarks.tables import TABLES

README = Path(__file__).parents[1] / "README.md"
MORE = {"models": models_table, "clipping": clipping_table}
FILES = {README: TABLES | MORE, METHODS / "README.md": {"methods": methods_table}}


def fill(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the README is out of date")
    check = parser.parse_args().check
    for path, tables in FILES.items():
        old = new = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            new = fill(new, name, table())
        if check and new != old:
            sys.exit(f"{path} is out of date: run python scripts/readme_tables.py")
        if not check:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
