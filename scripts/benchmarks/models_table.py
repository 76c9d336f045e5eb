"""Tables of the README of trained models: on images that chose nothing, one field at a time, and with and without
clipped gradients."""

from statistics import mean, median

from benchmarks.tables import RECALLS, load, mean_and_spread


def models_table(recorded: str = "flickr8k_models") -> str:
    """One line per recipe of `flickr8k_models.py`: its models, and the seeds that they were joined from, alone."""
    head = (
        "| 1,000 images that chose nothing | R@1/5/10 image → text | text → image | rsum | of each seed alone | min |"
    )
    lines = [head, "|---|---|---|---|---|---|"]
    for name, folds in load(recorded)["recipes"].items():
        runs = list(folds["B"]["runs"].values())
        joint = counted([each["metrics"]["rsum"] for each in runs], "models")
        alone = counted([rsum for each in runs for rsum in each.get("rsum_of_seeds", {}).values()], "seeds")
        minutes = max(each["seconds"]["seconds"] for each in runs) / 60  # of the run that filled the caches
        recalls = [f"{mean(each['metrics'][recall] for each in runs):.1f}" for recall in RECALLS]
        cells = [" / ".join(recalls[:3]), " / ".join(recalls[3:]), joint, alone, f"{minutes:.0f}"]
        lines.append(f"| [`{name}`](scripts/recipes/{name}.yaml) | {' | '.join(cells)} |")
    if encoding := load(recorded).get("encoding"):
        spent, threads = encoding["seconds"] / 60, encoding["environment"]["threads"]
        lines += [
            "",
            f"To encode the images and two crops of each took {spent:.0f} minutes more, once, with {threads} threads "
            "of a busy machine; all models from images read what it left.",
        ]
    return "\n".join(lines)


def sizes_table() -> str:
    """What `flickr8k_photos` was tried with on fold A, which chose: pixels a side, steps, crops, mirror images."""
    lines = ["| side, pixels | steps | crops | mirror images | rsum |", "|---|---|---|---|---|"]
    for tried in load("flickr8k_models")["tried_on_fold_A"]:
        change = tried["change"]
        if str(change.get("recipe", "")).startswith("flickr8k_photos "):
            mirrored = "yes" if change.get("mirror_average") else ""
            cells = [change["resize"], change["max_steps"], change["cached_crops"], mirrored, *tried["rsum"]]
            lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


def counted(values: list[float], of: str) -> str:
    """Their mean, and of several the standard deviation and the number."""
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{mean_and_spread(values, 1)}, {len(values)} {of}"


def clipping_table() -> str:
    """The quickstart with and without `max_grad_norm: 2`, a column for each seed."""
    runs = load("quickstart_clipping")["runs"]
    seeds = sorted({run["seed"] for run in runs})
    columns = ["rsum on test", *(f"seed {seed}" for seed in seeds), "mean"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    of = {(run["max_grad_norm"], run["seed"]): run["rsum"]["test"] for run in runs}
    rows = {name: [of[norm, seed] for seed in seeds] for norm, name in ((2.0, "clipped to 2"), (0.0, "not clipped"))}
    rows["gain"] = [without - clipped for clipped, without in zip(*rows.values(), strict=True)]
    for name, values in rows.items():
        cells = [f"{value:.1f}" for value in values]
        lines.append(f"| {' | '.join([name, *cells, mean_and_spread(values, 1)])} |")
    return "\n".join(lines)


def fields_table() -> str:
    """The cells of `recipes/grids/fields.yaml`, the best first: rsum, the gain on the base with the same seeds, and
    CPU seconds as a multiple of those of the base."""
    rsums: dict[str, dict[int, float]] = {}
    seconds: dict[str, list[float]] = {}
    for run in load("grid_fields")["runs"]:
        rsums.setdefault(run["cell"], {})[run["seed"]] = run["metrics"]["rsum"]
        seconds.setdefault(run["cell"], []).append(run["cpu_seconds"])
    base = rsums["base"]
    lines = ["| change | rsum | gain, same seeds | CPU time |", "|---|---|---|---|"]
    for name, of_seed in sorted(rsums.items(), key=lambda item: -mean(item[1].values())):
        gain = mean_and_spread([rsum - base[seed] for seed, rsum in of_seed.items()], 1)
        ratio = median(seconds[name]) / median(seconds["base"])  # the run that fills the caches does not count
        cells = ["**none**" if name == "base" else name, mean_and_spread(list(of_seed.values()), 1)]
        cells += ["", ""] if name == "base" else [gain if gain.startswith("-") else f"+{gain}", f"{ratio:.1f} ×"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
