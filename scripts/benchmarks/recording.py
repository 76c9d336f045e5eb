"""What a benchmark leaves behind: its numbers, printed and, where asked for, kept."""

import json
from pathlib import Path
from typing import Any


def record(result: dict[str, Any], output: Path | None) -> None:
    text = json.dumps(result, indent=1)
    print(text)
    if output is not None:
        output.write_text(text, encoding="utf-8")
