"""Weights between the start and the end of a fine-tuning (WiSE-FT; Wortsman et al., arXiv 2109.01903, equation 1).

Fine-tuning gains on the data that it is tuned on and forgets others. `theta = (1 - alpha) * start + alpha * tuned`
often keeps most of the gain and loses little. `choose_weights` measures alpha = 0, 0.1, ..., 1 on the validation split
and on a control set, and takes the alpha that gains most on validation for at most the permitted loss on the control
set. Losses and gains are points of mean recall: the mean of R@1, R@5 and R@10 in both directions, in percent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_vse.data.spec import DataSpec
from hf_vse.evaluation.evaluator import evaluate_retrieval
from hf_vse.evaluation.metrics import RECALLS
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.build import has_features

ALPHAS = tuple(step / 10 for step in range(11))
ROUNDING = 1e-6  # points of recall


def interpolate(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state dict `(1 - alpha) * start + alpha * tuned`, equal to the bit to `start` at 0 and to `tuned` at 1.

    A learned temperature is interpolated as it is stored, on the log scale. Buffers of integers are those of `tuned`.
    Running means and variances of batch normalisation are interpolated as weights are: between 0 and 1 they are not
    those of the interpolated weights, unless they are the same on both sides (`freeze_batchnorm`).

    Args:
        start, tuned: state dicts of one architecture, on one device.
        alpha: from 0 to 1.

    Raises:
        ValueError: other keys or shapes on one side, or `alpha` out of its range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be from 0 (the start) to 1 (the tuned weights)")
    if start.keys() != tuned.keys():
        other = sorted(start.keys() ^ tuned.keys())
        raise ValueError(
            f"start and tuned are of two architectures: {len(other)} weights are on one side only, the first is "
            f"{other[0]!r}: give two states of one model"
        )
    for name, tensor in start.items():
        if tensor.shape != tuned[name].shape:
            shapes = f"{tuple(tensor.shape)} and {tuple(tuned[name].shape)}"
            raise ValueError(f"{name} has the shapes {shapes} in start and tuned: give two states of one model")
    return {name: between(tensor, tuned[name], alpha) for name, tensor in start.items()}


def between(start: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    if not tuned.is_floating_point():
        return tuned.clone()
    if start.dtype == tuned.dtype == torch.float64:
        return torch.lerp(start, tuned, alpha)
    return torch.lerp(start.float(), tuned.float(), alpha).to(tuned.dtype)


def mean_recall(metrics: Mapping[str, float]) -> float:
    """R@1, R@5 and R@10 in both directions, averaged, in percent: `rsum / 6`."""
    return metrics["rsum"] / len(RECALLS)


def choose_alpha(points: Sequence[Mapping[str, Any]], permitted_loss: float) -> float:
    """The alpha with the highest recall on validation among those that lose at most `permitted_loss` on the control
    set; of several the smallest, which is nearest to the start. The start, `points[0]`, loses nothing."""
    least = points[0]["control"]["mean_recall"] - permitted_loss - ROUNDING
    permitted = [point for point in points if point["control"]["mean_recall"] >= least]
    return max(permitted, key=lambda point: point["validation"]["mean_recall"])["alpha"]


def load_control(spec: DataSpec, splits: dict[str, Any]) -> Dataset:
    """The control set, before any training.

    Raises:
        ValueError: there is none, or nothing to weigh it against.
    """
    if "validation" not in splits:
        raise ValueError(
            "control_dataset needs a validation split of the data, to weigh gains against losses: add one"
        )
    try:
        control = spec.load_split()
    except ValueError as error:
        raise ValueError(f"control_dataset (its split: control_options.split): {error}") from error
    if has_features(control) != has_features(splits["train"]):
        kinds = ["features" if has_features(each) else "images" for each in (control, splits["train"])]
        raise ValueError(f"control_dataset has {kinds[0]}, but the data of training have {kinds[1]}: give {kinds[1]}")
    return control


def choose_weights(
    model: VSEModel,
    start: Mapping[str, Tensor],
    processor: VSEProcessor,
    validation: Dataset,
    control: Dataset,
    args: VSETrainingArguments,
) -> dict[str, Any]:
    """Leaves the model, which has the tuned weights, with the chosen ones; several processes share the evaluation.

    Returns:
        For `metrics.json`: the chosen `alpha`, `permitted_loss`, and `points`, one for each alpha, with the metrics on
        `validation` and `control`, `mean_recall` among them.
    """
    tuned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = {name: tensor.to(model.device) for name, tensor in start.items()}
    options = {"batch_size": args.per_device_eval_batch_size, "num_workers": args.dataloader_num_workers}
    options["progress"] = not args.disable_tqdm
    points = []
    for alpha in ALPHAS:
        model.load_state_dict(interpolate(start, tuned, alpha))
        point: dict[str, Any] = {"alpha": alpha}
        for name, split in (("validation", validation), ("control", control)):
            metrics = evaluate_retrieval(model, processor, split, **options)
            point[name] = metrics | {"mean_recall": mean_recall(metrics)}
        points.append(point)
    chosen = choose_alpha(points, args.permitted_loss)
    model.load_state_dict(interpolate(start, tuned, chosen))
    return {"alpha": chosen, "permitted_loss": args.permitted_loss, "points": points}


def interpolation_lines(found: Mapping[str, Any] | None) -> list[str]:
    """What was chosen, in words; none where nothing was interpolated."""
    if not found:
        return []
    recalls = {
        name: {point["alpha"]: point[name]["mean_recall"] for point in found["points"]}
        for name in ("validation", "control")
    }
    alpha = found["alpha"]
    lines = [f"weights between start and end (WiSE-FT): alpha {alpha:g}; mean of R@1, R@5, R@10 in both directions:"]
    lines += [
        f"  {name:<12}{of[0.0]:5.1f} at the start, {of[1.0]:5.1f} tuned, {of[alpha]:5.1f} chosen"
        for name, of in recalls.items()
    ]
    lines[-1] += f" (at most {found['permitted_loss']:g} may be lost)"
    return [*lines, ""]
