"""The table of the README of models on images that chose nothing, from the record of `flickr8k_models.py`."""

from statistics import mean, stdev

from benchmarks.tables import load


def models_table() -> str:
    """One line per recipe: its models, and the seeds that they were joined from, each alone."""
    lines = ["| 1,000 images that chose nothing | rsum | of each seed alone | min |", "|---|---|---|---|"]
    for name, folds in load("flickr8k_models")["recipes"].items():
        runs = list(folds["B"]["runs"].values())
        joint = spread([each["metrics"]["rsum"] for each in runs], "models")
        alone = spread([rsum for each in runs for rsum in each.get("rsum_of_seeds", {}).values()], "seeds")
        minutes = max(each["seconds"]["seconds"] for each in runs) / 60  # of the run that filled the caches
        lines.append(f"| [`{name}`](scripts/recipes/{name}.yaml) | {joint} | {alone} | {minutes:.0f} |")
    return "\n".join(lines)


def spread(values: list[float], of: str) -> str:
    """Their mean, and of several the standard deviation and the number."""
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{mean(values):.1f} ± {stdev(values):.1f}, {len(values)} {of}"
