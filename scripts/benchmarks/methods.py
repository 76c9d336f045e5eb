"""The table of methods: what each recipe in `recipes/methods/` changes, and the row losses in `examples/objectives/`.

The first line of a recipe is a comment: `# Method, source: what it does.` `scripts/readme_tables.py` writes the table.
"""

import ast
import re
from pathlib import Path

from hf_vse.data.plain_yaml import parse_yaml

SCRIPTS = Path(__file__).parents[1]
METHODS = SCRIPTS / "recipes" / "methods"
EXAMPLES = SCRIPTS / "examples" / "objectives"
FIRST_LINE = re.compile(r"# (?P<method>.+), (?P<source>https://\S+): (?P<text>.+\.)")
NOT_SHOWN = ("base", "output_dir")


def methods_table() -> str:
    lines = ["| method | fields | |", "|---|---|---|"]
    for path in sorted(METHODS.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        first = FIRST_LINE.fullmatch(text.splitlines()[0])
        if first is None:
            raise ValueError(f"{path}: its first line is not `# Method, source: what it does.`")
        values = parse_yaml(text, str(path))
        fields = ", ".join(f"`{key}: {shown(value)}`" for key, value in values.items() if key not in NOT_SHOWN)
        lines.append(
            f"| [{first['method']}]({first['source']}) | [{path.stem}]({path.name}): {fields} | {first['text']} |"
        )
    for path in sorted(EXAMPLES.glob("*.py")):
        says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
        link = f"[{path.name}](../../examples/objectives/{path.name})"
        lines.append(
            f"| {path.stem} | {link}: `loss_type: scripts/examples/objectives/{path.name}:{path.stem}` | {says} |"
        )
    return "\n".join(lines)


def shown(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    return f"[{', '.join(map(shown, value))}]" if isinstance(value, list) else str(value)
