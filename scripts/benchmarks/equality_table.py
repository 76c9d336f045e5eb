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
    images, captions, chunk, part = (result["batch"][name] for name in ("images", "captions", "chunk", "mini_batch"))
    lines += [
        "",
        "The largest relative difference of the loss and its gradients, in float32. "
        f"{images} random images, some of them repeated like their captions, {captions} captions each where "
        f"`positives` is given; chunks of {chunk}, mini-batches of {part}, two processes with unequal shares; "
        f"`fused` {result['fused']}. Where nothing stands, the combination is refused "
        "(`scripts/benchmarks/equality.py`).",
    ]
    return "\n".join(lines)
