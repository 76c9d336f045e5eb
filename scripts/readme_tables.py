"""Fills the tables of the README from recorded results, so that no number is typed by hand.

    python scripts/readme_tables.py            # writes README.md
    python scripts/readme_tables.py --check    # fails if it would change

A result is the `metrics.json` of a run, kept in `scripts/benchmarks/results/` with the path of the data left out.
"""

import argparse
import json
import sys
from pathlib import Path

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
    lines = [
        "| Flickr8k, validation split (1,000 images), from features | R@1/5/10 image → text | text → image | rsum |",
        "|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("flickr8k_*.json")):
        result = load(path.stem)
        metrics = result["metrics"]["validation"]["metrics"]
        recalls = [f"{metrics[name]:.1f}" for name in RECALLS]
        seed, epochs = result["recipe"].get("seed", 42), result["recipe"]["num_train_epochs"]
        title = f"`{result['loss_type']}`, {epochs} epochs, seed {seed}"
        lines.append(f"| {title} | {' / '.join(recalls[:3])} | {' / '.join(recalls[3:])} | {metrics['rsum']:.1f} |")
    return "\n".join(lines)


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
    new = fill(fill(old, "quickstart", quickstart_table()), "results", results_table())
    if check and new != old:
        sys.exit("README.md is out of date: run python scripts/readme_tables.py")
    if not check:
        readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
