"""The table of record linkage, from the record of `linking.py`."""

from statistics import mean

from benchmarks.tables import load

SHOWN = {"f1": "F1", "accuracy": "accuracy", "ari": "ARI"}
RECORDS = ("trained", "records")  # names of the recipe as it is, earlier and now
VARIANTS = {"captions": " with `caption_weight: 1`", "classes": " with `class_weight: 0.5`"}
PARTS = {0.0: "its text alone", 1.0: "its photograph alone"}


def linking_table() -> str:
    result = load("linking")
    rows = result["rows"]
    runs = [run for run in result["runs"] if run.get("variant", RECORDS[-1]) in RECORDS]
    strings = next(row for row in rows if row["by"] == "strings")
    lines = [f"| linked by | {' | '.join(SHOWN.values())} | F1 above strings |", "|---|---|---|---|---|"]
    for row in rows:
        if row.get("image_weight", 0.5) != 0.5:
            continue
        title = {"strings": "strings (rapidfuzz)", "start": "`quickstart`, where the training starts"}.get(row["by"])
        title = title or f"`entities`{VARIANTS.get(row['by'], '')}, seed {row['seed']}"
        cells = [cell(row["metrics"][name], row["intervals"][name]) for name in SHOWN]
        gain = (
            "" if row is strings else cell(row["metrics"]["f1"] - strings["metrics"]["f1"], row["intervals"]["gain"])
        )
        lines.append(f"| {title} | {' | '.join([*cells, gain])} |")
    for weight, part in PARTS.items():
        of_part = [row["metrics"] for row in rows if row.get("image_weight") == weight and row["by"] in RECORDS]
        means = [mean(each[name] for each in of_part) for name in SHOWN]
        cells = [*(f"{each:.3f}" for each in means), f"{means[0] - strings['metrics']['f1']:+.3f}"]
        seeds = f", mean of {len(of_part)} seeds" if len(of_part) > 1 else ""
        lines.append(f"| `entities`, by {part}{seeds} | {' | '.join(cells)} |")
    facts = result["catalogues"]
    rsum = [f"{mean(run['rsum'][when] for run in runs):.0f}" for when in ("start", "end")]
    lines += [
        "",
        f"{facts['records'][0]:,} records are linked one-to-one to {facts['records'][1]:,}; {facts['links']:,} "
        f"have a match. Half choose the threshold, the other half ({result['judging_records']:,} records) judges "
        f"it. Trained on four records each of {facts['training']:,} other entities: {minutes(runs)} minutes a seed on "
        f"{result['environment']['threads']} thread of a busy machine, in which rsum of the validation split fell "
        f"from {rsum[0]} to {rsum[1]}. In brackets: 95 % percentile intervals of the bootstrap over the "
        f"{result['judging_entities']:,} judging entities, {result['resamples']:,} resamples "
        "(`scripts/benchmarks/linking.py`).",
    ]
    return "\n".join(lines)


def cell(value: float, interval: list[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def minutes(runs: list[dict]) -> str:
    found = sorted(round(run["seconds"] / 60) for run in runs)
    return f"{found[0]}" if found[0] == found[-1] else f"{found[0]} to {found[-1]}"
