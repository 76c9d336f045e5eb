"""The tables of record linkage and of pointing, from the records of benchmarks."""

from statistics import mean, stdev

from benchmarks.tables import load, machine

SHOWN = {"f1": "F1", "accuracy": "accuracy", "ari": "ARI"}
TITLES = {
    "strings": "strings (rapidfuzz)",
    "start": "`quickstart`, where the training starts",
    "records": "`entities`",
    "captions": "`entities` with `caption_weight: 1`",
    "classes": "`entities` with `class_weight: 0.5`",
}
STEPS = ("candidates", "one_to_one")
PARTS = {0.0: "its text alone", 1.0: "its photograph alone"}


def linking_table() -> str:
    result = load("linking")
    rows, runs = result["rows"], result["runs"]
    lines = [f"| linked by | {' | '.join(SHOWN.values())} | F1 above strings | rsum |", "|---|---|---|---|---|---|"]
    for by, title in TITLES.items():
        weights = (0.5, *PARTS) if by == "records" else (0.5,)
        for weight in weights:
            of = [row for row in rows if row["by"] == by and row.get("image_weight", 0.5) == weight]
            if of:
                part = f", by {PARTS[weight]}" if weight in PARTS else ""
                lines.append(line(title + part, of, result, weight == 0.5))
    facts, spent = result["catalogues"], mean(run["cpu_seconds"] for run in runs)
    lines += [
        "",
        f"{facts['records'][0]:,} records are linked one-to-one to {facts['records'][1]:,}; {facts['links']:,} "
        f"have a match. Half choose the threshold, the other half ({result['judging_records']:,} records) judges "
        f"it. Trained on four records each of {facts['training']:,} other entities, with seeds "
        f"{', '.join(str(each) for each in seeds_of(runs))}: {spent:.0f} CPU seconds "
        "a seed. A trained line is the mean of its seeds and their standard deviation; rsum is that of the "
        "validation split, image to text and back. In brackets: 95 % percentile intervals of the bootstrap over the "
        f"{result['judging_entities']:,} judging entities, {result['resamples']:,} resamples "
        "(`scripts/benchmarks/linking.py`).",
    ]
    return "\n".join(lines)


def link_photographs_table() -> str:
    """Records of real photographs, linked by strings and by a model with both parts of a record or one of them."""
    result = load("link_photographs")
    lines = [f"| linked by | {' | '.join(SHOWN.values())} | F1 above strings |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        weight, by = row.get("image_weight"), "strings (rapidfuzz)"
        if row["by"] == "model":
            by = f"`{result['model'].partition('-')[0]}`" + (f", by {PARTS[weight]}" if weight in PARTS else "")
        cells = [f"{row['metrics'][name]:.3f}{bracket(row['intervals'][name])}" for name in SHOWN]
        gain = row["metrics"]["f1"] - result["rows"][0]["metrics"]["f1"]
        above = f"{gain:+.3f}{bracket(row['intervals']['gain'])}" if row["by"] == "model" else ""
        lines.append(f"| {' | '.join([by, *cells, above])} |")
    facts = result["catalogues"]
    lines += [
        "",
        f"{result['dataset']}: the record of an image in catalogue a shows one corner of it, {facts['corner']:.0%} of "
        "each side, and has two captions; that in b shows the opposite corner and has the other three. "
        f"{facts['links']} images are in both, {facts['strangers']} in one alone. Other images choose the thresholds "
        "(`scripts/benchmarks/link_photographs.py`).",
    ]
    return "\n".join(lines)


def link_scale_table() -> str:
    """Time, memory and right links of large catalogues."""
    result = load("link_scale")
    rows = {
        "the best candidates, CPU s": f"{result['candidates']['cpu_s']:,.0f}",
        "the best candidates, minutes": f"{result['candidates']['s'] / 60:,.1f}",
        "one-to-one links, CPU s": f"{result['one_to_one']['cpu_s']:,.0f}",
        "memory beyond the vectors, MiB": f"{max(result[name]['peak_mib'] for name in STEPS):,}",
        "recall of the links": f"{result['recall']:.4f}",
        "precision": f"{result['precision']:.4f}",
        f"strangers linked (rate {result['rate']})": f"{result['strangers_linked']:.4f}",
    }
    first, second = result["records"]
    lines = [f"| {first:,} x {second:,}, {result['dim']} dimensions | |", "|---|---|"]
    lines += [f"| {title} | {value} |" for title, value in rows.items()]
    lines += ["", f"{machine(result)} (`scripts/benchmarks/link_scale.py`)."]
    return "\n".join(lines)


def identification_scale_table() -> str:
    """Time and memory of recognising things among very many."""
    result = load("identification_scale")
    verified, one, known = (result["metrics"][name] for name in ("verification", "one_shot", "open_set"))
    pairs = verified["same_pairs"] + verified["different_pairs"]
    return (
        f"{result['images']:,} synthetic images of {result['metrics']['classes']:,} things with "
        f"{result['distractors']:,} distractors ({result['dim']} dimensions) are judged in "
        f"{result['cpu_s'] / 60:,.0f} CPU minutes and {result['peak_mib']:,} MiB beyond the vectors; all scores at "
        f"once would take {result['all_scores_mib'] / 1024:,.0f} GiB. {pairs:,} pairs: ROC-AUC "
        f"{verified['roc_auc']:.4f}, true accepts {verified['tar']:.1f} % at false accepts of {verified['far']} %; "
        f"one-shot {one['top1']:.1f} % right, with all distractors {one['with_distractors'][-1]['top1']:.1f} %; "
        f"recognised in the open set {known['tpir']:.1f} %, where {known['fpir']:g} % of strangers are. "
        f"{machine(result)} (`scripts/benchmarks/identification_scale.py`)."
    )


def pointing_table() -> str:
    """Whether the most relevant cell is the object's, with and without mosaics."""
    runs, recalls = load("pointing")["runs"], ("i2t_r1", "t2i_r1", "rsum")
    lines = ["| | pointing | told apart | R@1 image to text | R@1 text to image | rsum |", "|---|---|---|---|---|---|"]
    for way in dict.fromkeys(run["way"] for run in runs):
        of = [run["where"] | run["recalls"] for run in runs if run["way"] == way]
        columns = [[each[name] for each in of] for name in ("pointing", "told_apart", *recalls)]
        cells = [f"{mean(column):.1f} ± {stdev(column):.1f}" for column in columns]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    chance, recipe = runs[0]["where"], runs[0]["recipe"]
    lines.append(f"| by chance | {chance['pointing_by_chance']:.1f} | {chance['told_apart_by_chance']:.1f} | | | |")
    cost = [mean(run["cpu_seconds"] for run in runs if run["way"] == way) for way in ("plain", "mosaics")]
    lines += [
        "",
        f"Percent, mean and standard deviation of seeds {', '.join(str(each) for each in seeds_of(runs))}. Scenes of "
        f"difficulty {recipe['difficulty']}, {recipe['num_train']:,} to train and {recipe['num_eval']:,} of the test "
        f"split, {recipe['num_train_epochs']:g} epochs; {cost[0] / 60:.0f} CPU minutes a run, with mosaics "
        f"{cost[1] / 60:.0f} (`scripts/benchmarks/pointing.py`).",
    ]
    return "\n".join(lines)


def seeds_of(runs: list[dict]) -> list[int]:
    return sorted({run["seed"] for run in runs})


def line(title: str, of: list[dict], result: dict, whole: bool) -> str:
    """A line of the table: the seeds that were linked by one thing, with intervals where they used both parts."""
    by = of[0]["by"]
    intervals = result["intervals"][by] if whole else {}
    cells = [spread([row["metrics"][name] for row in of], intervals.get(name)) for name in SHOWN]
    strings = next(row["metrics"]["f1"] for row in result["rows"] if row["by"] == "strings")
    gain = mean(row["metrics"]["f1"] for row in of) - strings
    cells.append("" if by == "strings" else f"{gain:+.3f}{bracket(intervals.get('gain'))}")
    return f"| {title} | {' | '.join([*cells, rsum(by, result['runs']) if whole else ''])} |"


def spread(values: list[float], interval: list[float] | None) -> str:
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{deviation}{bracket(interval)}"


def bracket(interval: list[float] | None) -> str:
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


def rsum(by: str, runs: list[dict]) -> str:
    """Of the validation split: where the training starts, or the mean of the seeds at its end."""
    when, of = ("start", runs) if by == "start" else ("end", [run for run in runs if run["variant"] == by])
    return f"{mean(run['rsum'][when] for run in of):.0f}" if of else ""


LINK_TABLES = {
    "linking": linking_table,
    "link_photographs": link_photographs_table,
    "link_scale": link_scale_table,
    "identification_scale": identification_scale_table,
    "pointing": pointing_table,
}
