"""The table of fields and executions, from the record of `equality.py`."""

from benchmarks.tables import load


def equality_table() -> str:
    result = load("equality")
    fields: dict[str, dict[str, float | str]] = result["fields"]
    ways = list(next(iter(fields.values())))
    lines = [f"| difference from `dense` | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    for name, of_ways in fields.items():
        cells = [f"{each:.0e}" if isinstance(each, float) else "" for each in of_ways.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    batch = result["batch"]
    lines += [
        "",
        f"The largest relative difference of the loss and its gradients, in float32, on {batch['images']} random images "
        f"with repeated images and captions ({batch['captions']} captions each where `positives` is given), in chunks of "
        f"{batch['chunk']}, mini-batches of {batch['mini_batch']} and unequal shares of two processes; Triton ran "
        f"{result['fused']}. Where nothing stands the combination is refused (`scripts/benchmarks/equality.py`).",
    ]
    return "\n".join(lines)
