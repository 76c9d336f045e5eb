"""Before and after a fine-tuning: the model that a run started from, judged on the same images as its result.

The start is judged as its own library loads it, so that nothing that training adds to it takes part.
"""

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.judge import Judgement, compare_judgements, judge
from hf_vse.evaluation.tables import p_value

SIGNIFICANT = 0.05


def compare_with_start(
    init_from: str, judged: Mapping[Any, Judgement], splits: Mapping[str, Dataset], source: str
) -> dict[str, Any]:
    """Judges the model that a run started from, and compares the result with it; several processes share the encoding.

    Args:
        init_from: as in the recipe.
        judged: the result on each split, by name.

    Returns:
        `model`, the name of the start, its records by split as `metrics`, and by split the `comparisons`, what
        `compare_models` returns: above zero the result is better. An empty dict on all but the main process.
    """
    main = PartialState().is_main_process
    encoder = load_encoder(init_from, device=str(PartialState().device))
    before = {name: judge(encoder, splits[name], source=source, split=name, progress=main) for name in judged}
    if not main:
        return {}
    compared = {name: compare_judgements([before[name], judged[name]])[0]["metrics"] for name in judged}
    return {
        "model": init_from,
        "metrics": {name: each.record for name, each in before.items()},
        "comparisons": compared,
    }


def difference_lines(result: Mapping[str, Any]) -> list[str]:
    """Before and after in words, one line for each split of a run's `metrics.json`; none without a start."""
    start = result.get("start")
    if not start:
        return []
    lines = []
    for name, compared in start["comparisons"].items():
        found, before = compared["rsum"], start["metrics"][name]["metrics"]["rsum"]
        low, high = found["interval"]
        verdict = "no difference that chance could not make"
        if found["p_value"] < SIGNIFICANT:
            verdict = "a real gain" if found["difference"] > 0 else "a real loss"
        lines.append(
            f"{name}: rsum {before:.1f} before, {before + found['difference']:.1f} after; {found['difference']:+.1f} "
            f"(95 % interval {low:+.1f} to {high:+.1f}, p {p_value(found)}): {verdict}"
        )
    unmoved = all(stage.get("best_step") == 0 for stage in result["stages"])
    if unmoved or result.get("interpolation", {}).get("alpha") == 0:
        lines.append("nothing beat the model that the run started from, which is what you get")
    return [*lines, ""]
