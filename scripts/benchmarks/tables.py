"""The tables of the README, each from the records in `results/`; `scripts/readme_tables.py` writes them."""

import json
from pathlib import Path
from statistics import mean, median, stdev

from hf_vse.evaluation.record import read_evaluation
from hf_vse.evaluation.tables import recall_table, table_rows
from hf_vse.plots import RECALLS
from hf_vse.training.grid import summarise

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def load_evaluation(name: str) -> dict:
    return read_evaluation(RESULTS / f"{name}.json")


def machine(result: dict) -> str:
    """The processor, and how many threads were used."""
    device, threads = (result["environment"][name] for name in ("device", "threads"))
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}"


def minutes(result: dict) -> float:
    return sum(stage["seconds"] for stage in result["stages"]) / 60


def typical_minutes(results: list[dict]) -> float:
    """Minutes of the run that had to fill the cache of frozen towers; if there is none, the median."""
    fresh = max(results, key=seconds_of_frozen_towers)
    return minutes(fresh) if seconds_of_frozen_towers(fresh) > 10 else median(map(minutes, results))


def seconds_of_frozen_towers(result: dict) -> float:
    return sum(stage.get("seconds_before_training", 0.0) for stage in result["stages"])


def quickstart_table() -> str:
    result = load_evaluation("quickstart")
    table = recall_table(table_rows(result["metrics"]))
    note = f"{minutes(result):.1f} minutes of training on {result['environment']['threads']} CPU threads."
    return f"```\n{table}\n```\n\n{note}"


def results_table() -> str:
    """One line per recipe: the mean over its seeds, recorded as RECIPE-SEED.json."""
    runs: dict[str, list[dict]] = {}
    for path in sorted(RESULTS.glob("flickr8k_*-*.json")):
        runs.setdefault(path.stem.rpartition("-")[0], []).append(load_evaluation(path.stem))
    lines = [
        "| Flickr8k validation (1,000 images) | R@1/5/10 image → text | text → image | rsum | min |",
        "|---|---|---|---|---|",
    ]
    for published in load("published_code")["lines"]:
        recalls = [f"{value:.1f}" for value in published["recalls"]]
        cells = [published["name"], " / ".join(recalls[:3]), " / ".join(recalls[3:]), f"{published['rsum']:.1f}", ""]
        lines.append(f"| {' | '.join(cells)} |")
    means = {name: mean_metrics(results) for name, results in runs.items()}
    for name in sorted(means, key=lambda each: means[each]["rsum"]):
        metrics, results = means[name], runs[name]
        recalls = [f"{metrics[recall]:.1f}" for recall in RECALLS]
        spread = f" ± {stdev(rsums(results)):.1f}" if len(results) > 1 else ""
        title = f"[`{name}`](scripts/recipes/{name}.yaml), {len(results)} seed{'s' if len(results) > 1 else ''}"
        cells = [title, " / ".join(recalls[:3]), " / ".join(recalls[3:]), f"{metrics['rsum']:.1f}{spread}"]
        lines.append(f"| {' | '.join(cells)} | {typical_minutes(results):.1f} |")
    return "\n".join(lines)


def rsums(results: list[dict]) -> list[float]:
    return [result["metrics"]["validation"]["metrics"]["rsum"] for result in results]


def mean_metrics(results: list[dict]) -> dict[str, float]:
    metrics = [result["metrics"]["validation"]["metrics"] for result in results]
    return {name: mean(each[name] for each in metrics) for name in (*RECALLS, "rsum")}


def grid_section() -> str:
    """The cells of `recipes/grids/paper.yaml`: a line for each objective and start, a column for the rest."""
    summary = summarise(load("grid")["runs"])
    columns = {"linear-masked": "linear, masked", "linear-unmasked": "linear, neither"}
    columns |= {"mlp-masked": "mlp, masked", "mlp-unmasked": "mlp, neither"}
    lines = [f"| rsum | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    rows = dict.fromkeys((name.split("-")[0], name.split("-")[3]) for name in summary)
    for loss, start in rows:
        cells = [summary[f"{loss}-{column}-{start}"] for column in columns]
        numbers = [f"{cell['rsum']:.1f} ± {cell['rsum_std']:.1f}" for cell in cells]
        title = f"`{loss}`" + (" after an epoch of `nce`" if start == "warm" else "")
        lines.append(f"| {title} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def speed_table() -> str:
    epoch, frozen = load("epoch_time"), load("frozen_cache")
    seconds, per_hour = frozen["seconds"], frozen["epochs_per_hour"]
    ours, plain = epoch["hf_vse_epoch"], epoch["plain_packed_gru_epoch"]
    cached, run = seconds["epoch on the cache"], seconds["epoch with the tower"]
    of_crop, an_hour = seconds["cache"] / (frozen["crops"] + 1), per_hour["epoch on the cache"]
    rows = [
        ("two CPU cores", "hf_vse", "alternative in the same run", "ratio"),
        ("---",) * 4,
        ("epoch of the paper's model, features", f"{ours:.0f} s", f"{plain:.0f} s: packed GRU", f"{ours / plain:.2f}"),
        (
            "epoch of a frozen stage, pixels",
            f"{cached:.0f} s, {an_hour:.0f} per hour, after {of_crop:.0f} s per crop",
            f"{run:.0f} s, {per_hour['epoch with the tower']:.1f} per hour: tower in every step",
            f"{cached / run:.3f}",
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def loss_table() -> str:
    """For each recorded device: time at the largest batch of the plain loss, and memory at the largest batch."""
    lines = []
    for name in ("loss_step", "loss_step_gpu"):
        if (RESULTS / f"{name}.json").is_file():
            lines += loss_lines(load(name))
    return "\n".join(lines)


def loss_lines(result: dict) -> list[str]:
    timed = [row for row in result["times"] if "of_plain" in row]
    batch = max(row["batch"] for row in timed)
    memory = {(row["contender"], row["batch"]): row for row in result["memory"]}
    large = max(row["batch"] for row in result["memory"])
    where = result["environment"]
    device = f"{where['device']}, {where['threads']} threads, {result['dtype']}"
    lines = [
        f"| {device}; 1,024 dimensions | {batch:,} pairs | vs. plain | MiB at {large:,} | vs. plain |",
        "|---|---|---|---|---|",
    ]
    for row in (each for each in timed if (each["batch"], each["dim"]) == (batch, 1024)):
        held = memory[row["contender"], large]
        scaled = "*" if held.get("scaled") else ""
        cells = [
            f"{row['seconds']:.2f} s", f"{row['of_plain']:.2f}", f"{held['peak_mib']:,.0f}{scaled}",
            f"{100 * held['of_plain']:.1f} %",
        ]  # fmt: skip
        lines.append(f"| {row['contender']} | {' | '.join(cells)} |")
    return [*lines, "", "\\* scaled up from half the batch, because it nearly fills the memory of this machine.", ""]


def judged_table() -> str:
    """The evaluation of two objectives, means over seeds, their differences, and the cost of the diagnostics."""
    result, cost = load_evaluation("judged_flickr8k"), load("diagnostics_cost")
    models = list(result["metrics"].values())
    runs: dict[str, list[dict]] = {}
    for model in models:
        runs.setdefault(model["model"].rpartition("-")[0].removeprefix("flickr8k_features_"), []).append(model)
    seeds = len(next(iter(runs.values())))
    lines = [
        f"| Flickr8k validation 1K, {seeds} seeds | {' | '.join(f'`{name}`' for name in runs)} |",
        f"|---|{'---|' * len(runs)}",
    ]
    by_chance = {
        "random": dig(models[0], "diagnostics.hubness.t2i.k10.skewness_at_random"),
        "chance": dig(models[0], "composition.kinds.replace_object.chance"),
    }
    for title, path, digits in JUDGED:
        cells = [mean_and_spread([dig(model, path) for model in seeds_of], digits) for seeds_of in runs.values()]
        lines.append(f"| {title.format(**by_chance)} | {' | '.join(cells)} |")
    same_seed = [each for each in result["comparisons"] if each["first"][-2:] == each["second"][-2:]]
    tested = [each["metrics"]["rsum"] for each in same_seed]
    differences = ", ".join(f"{each['difference']:+.1f} (p {p_value(each['p_value'])})" for each in tested)
    worst = max(value for each in result["largest_difference_from_definition"].values() for value in each.values())
    return "\n".join(
        [
            *lines,
            "",
            f"Difference in rsum, second minus first, per seed: {differences}. All numbers of all protocols equal "
            f"those computed by definition (`scripts/benchmarks/judged.py`) to within {worst:.0e}. The "
            f"diagnostics of a batch take {cost['milliseconds_of_the_diagnostics']:.0f} ms, "
            f"{100 * (cost['ratio_by_their_own_time'] - 1):.2f} % of training if run every {cost['every']} steps.",
        ]
    )


# Title, path in a record, digits.
JUDGED = (
    ("rsum", "metrics.rsum", 1),
    ("image → text, hit rate at 10", "protocols.ranking.metrics.i2t_hit_r10", 1),
    ("image → text, true recall at 10", "protocols.ranking.metrics.i2t_recall_r10", 1),
    ("image → text, mAP@R", "protocols.ranking.metrics.i2t_map_at_r", 1),
    ("rsum with one caption per image", "protocols.first_caption.metrics.rsum", 1),
    ("rsum with averaged captions", "protocols.mean_caption.metrics.rsum", 1),
    ("rsum with QB-Norm", "corrected.metrics.rsum", 1),
    ("alignment (lower is closer)", "diagnostics.geometry.alignment", 2),
    ("modality gap", "diagnostics.geometry.modality_gap", 2),
    ("effective rank of images", "diagnostics.geometry.effective_rank_image", 0),
    ("hubness of images ({random:.2f} at random)", "diagnostics.hubness.t2i.k10.skewness", 2),
    ("calibration error at its own temperature, %", "diagnostics.calibration.given.ece", 1),
    ("accuracy against a replaced object, % (chance {chance:.0f})", "composition.kinds.replace_object.accuracy", 1),
    ("accuracy against a replaced attribute", "composition.kinds.replace_attribute.accuracy", 1),
    ("accuracy against a reversed relation", "composition.kinds.replace_relation.accuracy", 1),
    ("accuracy against shuffled words", "composition.kinds.word_order.accuracy", 1),
)


def dig(record: dict, path: str) -> float:
    for name in path.split("."):
        record = record[name]
    return record


def mean_and_spread(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def evaluation_table() -> str:
    result = load("evaluation_speed")
    coco, gallery = result["coco_sized"], result["gallery"]
    million, everything = result["million"], result["everything"]
    published = coco["published_seconds"]["float64"]
    rows = [
        ("", "hf_vse", "a sort per query in NumPy", "times faster"),
        ("---",) * 4,
        (
            f"recalls of {coco['images']:,} images and {coco['texts']:,} captions",
            f"{coco['hf_vse_seconds']:.1f} s",
            f"{published:.0f} s, the same numbers",
            f"{coco['times_faster']['float64']:.0f}",
        ),
        (
            f"{gallery['texts']:,} captions against {gallery['images']:,} images",
            f"{gallery['seconds']:.0f} s, {gallery['peak_gib']:.1f} GiB",
            "",
            "",
        ),
        (
            f"{million['texts']:,} captions against {million['images']:,} images",
            f"{million['minutes_scaled_up']:.0f} min (from one of {million['shares']} shares), "
            f"{million['peak_gib']:.1f} GiB",
            "",
            "",
        ),
        (
            f"all protocols, intervals and diagnostics of {everything['images']:,} and {everything['texts']:,}",
            f"{everything['seconds']:.0f} s",
            "",
            "",
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def search_table() -> str:
    names = {
        "exact": "exact",
        "ivf": "cells (IVF)",
        "hnsw": "graph (HNSW)",
        "pq": "compressed cells (IVF-PQ), reranked",
    }
    lines = [
        "| 512-d vectors | index | per query, median (95 %) | recall@10 | index, GiB | build time | vs. bare FAISS |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in load("search_speed")["measured"]:
        single = row["single_ms"]
        cells = [
            f"{row['vectors']:,}",
            names[row["plan"]["kind"]],
            f"{single['p50']:.1f} ms ({single['p95']:.1f})",
            f"{row['recall_at_10']:.3f}",
            f"{row['memory_mib'] / 1024:.1f}",
            f"{row['build_s'] / 60:.1f} min" if row["build_s"] > 60 else f"{row['build_s']:.1f} s",
            f"{row['overhead']:.2f}" if "overhead" in row else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compression_table() -> str:
    result = load("compression")
    rows = [row for row in result["rows"] if row["way"] == "rotated" and row["precision"] != "float16"]
    full = max(row["dim"] for row in rows)
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    lines = [f"| rsum (bytes per vector) | {' | '.join(precisions)} |", "|---" * (1 + len(precisions)) + "|"]
    for dim in sorted({row["dim"] for row in rows}, reverse=True):
        of_dim = {row["precision"]: row for row in rows if row["dim"] == dim}
        cells = [f"{of_dim[each]['rsum']:.1f} ({of_dim[each]['bytes']:,})" for each in precisions]
        lines.append(f"| {dim} dimensions{' (all)' if dim == full else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def visitors_sentence() -> str:
    result = load("space_load")
    slowest = max(times["p95_ms"] for times in result["endpoints"].values()) / 1000
    return (
        f"{result['visitors']} concurrent visitors without pauses, for {result['seconds']:.0f} s, on "
        f"{result['environment']['threads']} CPU cores with {result['demo']['photographs']:,} images of Flickr8k: "
        f"{result['answers']:,} answers, {result['errors']} errors, 95 % of each kind within {slowest:.1f} s "
        "(`scripts/benchmarks/space_load.py`)."
    )


def near_duplicates_sentence() -> str:
    training = load("near_duplicates")["training"]
    found = {
        kind: f"{each['mean']:+.1f} ± {each['std']}" for kind, each in training["rsum_validation_minus_test"].items()
    }
    return (
        "How much validation deceives where bursts are torn apart: rsum on held-out images minus rsum on other "
        f"photographs is {found['none']} without groups and {found['hash']} with them ({training['photographs']:,} "
        f"photographs of Flickr8k, half of them as bursts of four; {len(training['seeds'])} seeds of a small model; "
        "`scripts/benchmarks/near_duplicates.py`)."
    )


ADAPTED = {
    "own_photos": "linear map on frozen vectors (`own_photos` on a CPU)",
    "heads-residual": "residual head on frozen vectors",
    "lora": "LoRA, rank 8",
    "full-low": "all weights, a third of the rate",
    "full": "all weights",
}


def adaptation_rows(runs: list[dict]) -> str:
    """A line for each source and for each way to adapt it, means and spreads over seeds."""

    def both(same: list[dict], end: str) -> list[str]:
        values = {name: [run[end][name] for run in same] for name in ("target", "easy")}
        return [mean_and_spread(of, 1) if len(set(of)) > 1 else f"{of[0]:.1f}" for of in values.values()]

    lines = ["| source | target | what is trained | images | target | easy | seeds |", "|---" * 7 + "|"]
    for family, target in sorted({(run["family"], run["target"]) for run in runs}):
        here = [run for run in runs if (run["family"], run["target"]) == (family, target)]
        lines.append(f"| {' | '.join([family, target, 'nothing', '', *both(here, 'before'), ''])} |")
        for method, size in [(method, size) for method in ADAPTED for size in sorted({run["size"] for run in here})]:
            same = [run for run in here if (run["method"], run["size"]) == (method, size)]
            for end in [name for name in ("tuned", "after") if same and name in same[0]]:
                what = ADAPTED[method] + (", WiSE-FT" if end == "after" and "tuned" in same[0] else "")
                cells = [family, target, what, f"{size:,}", *both(same, end), str(len(same))]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def adaptation_section() -> str:
    """The table, and what a linear map gains and costs beside all weights; seed 0 of CLIP ran alone, one by one."""
    runs = load("adaptation")["runs"]
    scenes = [run for run in runs if (run["target"], run["size"]) == ("scenes", 1000)]
    shares, seconds = [], []
    for family in ("clip", "siglip"):
        of = {name: [run for run in scenes if (run["method"], run["family"]) == (name, family)] for name in ADAPTED}
        heads = mean(run["after"]["target"] - run["before"]["target"] for run in of["own_photos"])
        full = mean(run["tuned"]["target"] - run["before"]["target"] for run in of["full"])
        shares.append(f"{100 * heads / full:.0f} % ({family})")
        seconds += [f"{run['seconds']:.0f}" for name in ("own_photos", "full") for run in of[name] if run["seed"] == 0]
    return (
        f"{adaptation_rows(runs)}\n\nOn 1,000 scenes the linear map reaches {' and '.join(shares)} of the gain of all "
        f"weights. Seed 0 of both with CLIP, one after the other on an idle thread, took {' and '.join(seconds[:2])} "
        "seconds."
    )


TABLES = {
    "quickstart": quickstart_table,
    "results": results_table,
    "grid": grid_section,
    "speed": speed_table,
    "loss": loss_table,
    "judged": judged_table,
    "evaluation": evaluation_table,
    "search": search_table,
    "compression": compression_table,
    "visitors": visitors_sentence,
    "near_duplicates": near_duplicates_sentence,
    "adaptation": adaptation_section,
}
