"""The table of what commands take to start, from the record of `cold_start.py`."""

from benchmarks.tables import load


def cold_start_table() -> str:
    """CPU seconds and multiples of `import torch`, now and at the earlier commit of the record."""
    result = load("cold_start")
    trees = sorted(result["commits"])  # before, now
    head = [f"{tree}, {result['commits'][tree]}" for tree in trees]
    lines = [f"| CPU seconds (× `import torch`) | {' | '.join(head)} |", "|---" * (1 + len(trees)) + "|"]
    for name, of in result["measured"].items():
        cells = [
            f"{of[each]['cpu_s']:.2f} ({of[each]['times_import_torch']:.2f})" if each in of else "" for each in trees
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
