"""Fills the tables of the README from recorded results, so that no number is typed by hand.

    python scripts/readme_tables.py            # writes README.md
    python scripts/readme_tables.py --check    # fails if it would change

A result is the `metrics.json` of a run, kept in `scripts/benchmarks/results/` with the path of the data left out.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "scripts" / "benchmarks" / "results"
RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def minutes(result: dict) -> float:
    return sum(stage["seconds"] for stage in result["stages"]) / 60


def quickstart_table() -> str:
    from hf_vse.evaluation.report import recall_table

    result = load("quickstart")
    rows = {split: record["metrics"] for split, record in result["metrics"].items()}
    table = recall_table(rows | {"chance": result["metrics"]["test"]["chance"]})
    note = f"{minutes(result):.1f} minutes of training on {result['environment']['threads']} CPU threads."
    return f"```\n{table}\n```\n\n{note}"


def results_table() -> str:
    """A line for each recipe: the mean over its seeds, recorded as RECIPE-SEED.json."""
    runs: dict[str, list[dict]] = {}
    for path in sorted(RESULTS.glob("flickr8k_*-*.json")):
        runs.setdefault(path.stem.rpartition("-")[0], []).append(load(path.stem))
    lines = [
        "| Flickr8k validation (1,000 images), from features | R@1/5/10 image → text | text → image | rsum | min |",
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
        lines.append(f"| {' | '.join(cells)} | {max(map(minutes, results)):.1f} |")
    return "\n".join(lines)


def rsums(results: list[dict]) -> list[float]:
    return [result["metrics"]["validation"]["metrics"]["rsum"] for result in results]


def mean_metrics(results: list[dict]) -> dict[str, float]:
    metrics = [result["metrics"]["validation"]["metrics"] for result in results]
    return {name: mean(each[name] for each in metrics) for name in (*RECALLS, "rsum")}


def grid_section() -> str:
    from hf_vse.training.grid import grid_table

    return grid_table(load("grid")["summary"])


def speed_table() -> str:
    epoch, frozen = load("epoch_time"), load("frozen_cache")
    seconds, per_hour = frozen["seconds"], frozen["epochs_per_hour"]
    ours, plain = epoch["hf_vse_epoch"], epoch["plain_packed_gru_epoch"]
    cached, run = seconds["epoch on the cache"], seconds["epoch with the tower"]
    rows = [
        ("two CPU cores", "hf_vse", "the alternative, in the same run", "ratio"),
        ("---",) * 4,
        ("epoch of the paper's model, features", f"{ours:.0f} s", f"{plain:.0f} s: packed GRU", f"{ours / plain:.2f}"),
        (
            "epoch of a frozen stage, pixels",
            f"{cached:.0f} s, {per_hour['epoch on the cache']:.0f} an hour, after {seconds['cache']:.0f} s once",
            f"{run:.0f} s, {per_hour['epoch with the tower']:.1f} an hour: the tower in every step",
            f"{cached / run:.3f}",
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def fill(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the README is out of date")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    tables = {"quickstart": quickstart_table, "results": results_table, "grid": grid_section, "speed": speed_table}
    new = old
    for name, table in tables.items():
        new = fill(new, name, table())
    if check and new != old:
        sys.exit("README.md is out of date: run python scripts/readme_tables.py")
    if not check:
        readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
