"""What it takes to start, to train on much and to serve: tables from records."""

from benchmarks.tables import load, machine


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


def serving_table() -> str:
    """Queries per second, and milliseconds to the answer: of FAISS, of encoding before it, and of servers."""
    result = load("serving")
    titles = {"faiss": "FAISS alone, vectors given", "encode + faiss": "sentence encoded, FAISS, one process"}
    of = [(titles[name], measured) for name, measured in result["bare"].items()]
    for name, measured in result["served"].items():
        title = {"server": "`hf-vse serve`", "batches of one": "`hf-vse serve --batch 1 --wait_ms 0`"}[name]
        of += [(f"{title}, clients at once: {each['clients']}", each) for each in measured]
    lines = ["| | queries/s | median ms | 95 % below, ms | queries in a batch |", "|---|---|---|---|---|"]
    for title, each in of:
        cells = [f"{each['queries_per_second']:,.0f}", f"{each['p50_ms']:.3g}", f"{each['p95_ms']:.3g}"]
        lines.append(f"| {' | '.join([title, *cells, str(each.get('queries_per_batch', ''))])} |")
    lines += [
        "",
        f"{result['items']:,} vectors of {result['dim']} dimensions, index {result['plan']['kind']}; every query "
        "is another sentence; clients and server on the same machine, "
        f"{machine(result)} "
        "(`scripts/benchmarks/serving.py`).",
    ]
    return "\n".join(lines)


def large_training_table() -> str:
    """From the recipe to the first step: seconds and memory."""
    result = load("large_training")
    lines = ["| pairs | seconds | CPU seconds | memory at most, GiB |", "|---|---|---|---|"]
    for title, of in result["started"].items():
        size = f"{of['pairs']:,} of {of['images']:,} images, {title}"
        lines.append(f"| {size} | {of['s']:.0f} | {of['cpu_s']:.0f} | {of['peak_bytes'] / 2**30:.1f} |")
    note = f"{machine(result)}, imports excluded (`scripts/benchmarks/large_training.py`)."
    return "\n".join([*lines, "", note])


def cost_table() -> str:
    result = load("scaling_cost")
    sizes = list(result["costs"][0]["hours_of_a_pass"])
    lines = [f"| image tower | GPUs | batch | {' | '.join(sizes)} pairs | busy |", "|---" * (4 + len(sizes)) + "|"]
    for row in result["costs"]:
        hours = [duration(row["hours_of_a_pass"][size]) for size in sizes]
        cells = [
            row["tower"],
            str(row["gpus"]),
            f"{row['global_batch']:,}",
            *hours,
            f"{100 * row['efficiency']:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.2g} min"
    return f"{hours:.2g} h" if hours < 48 else f"{hours / 24:.0f} days"


START_TABLES = {
    "cold_start": cold_start_table,
    "cost": cost_table,
    "large_training": large_training_table,
    "serving": serving_table,
}
