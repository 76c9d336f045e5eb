"""Several seeds of one recipe as one model, whose vectors are theirs one beside the other.

An ensemble adds the similarities of its members, as SCAN does (Lee et al., ECCV 2018). For dual encoders that is one
longer vector: the linear maps are stacked, and the heads become blocks on the diagonal. So the result is an ordinary
model, which runs its towers once. Only the whole vector is scaled to length one, so the members count by the lengths
of theirs, which hardly differ between seeds.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_vse.data.digests import weights_digest
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.effects import HUB_KEYS
from hf_vse.training.recipe import Recipe

JOINED = ("visual_projection", "text_projection", "visual_head", "text_head")
PLACE = {"_name_or_path": ""}  # where a model was loaded from, in its configuration
REMEDY = (
    "join runs of one recipe with pretrained towers, freeze_image_tower and freeze_text_tower, which differ in seed "
    "alone"
)
SEEDS = "seeds"  # the folder with the runs of a joint model, each named by its seed
OF_THE_JOINT = ("joined_seeds", "push_to_hub", *HUB_KEYS)  # keys that its runs do not have


def joined_models(models: Sequence[VSEModel], names: Sequence[str]) -> VSEModel:
    """One model with the heads of all; its `projection_dim` is the sum of theirs.

    Args:
        models: of one configuration, with the same towers; they are not changed.
        names: what an error calls them.

    Raises:
        ValueError: fewer than two, other configurations or towers, a whole dual encoder, or a tower without a map.
    """
    first = models[0]
    if len(models) < 2:
        raise ValueError(f"there is one model, {names[0]}: give two or more to join")
    if first.dual_encoder is not None:
        raise ValueError(
            f"{names[0]} holds a whole dual encoder, which cannot be joined: start from image_tower and text_tower"
        )
    if isinstance(first.text_projection, nn.Identity):
        raise ValueError(
            f"{names[0]} has no linear map on each of two towers, as projection_dim is the size of the text "
            "tower: give another one"
        )
    digests = [
        weights_digest(*(part for name, part in each.named_children() if name not in JOINED)) for each in models
    ]
    for name, each, digest in zip(names, models, digests, strict=True):
        if each.config.to_dict() | PLACE != first.config.to_dict() | PLACE:
            raise ValueError(f"{name} has another configuration than {names[0]}: {REMEDY}")
        if digest != digests[0] or any(
            not torch.equal(*pair) for pair in zip(scalars(first), scalars(each), strict=True)
        ):
            raise ValueError(f"{name} has other towers, poolings or temperature than {names[0]}: {REMEDY}")
    config = deepcopy(first.config)
    config.projection_dim = sum(each.config.projection_dim for each in models)
    result = VSEModel(config)
    states = [each.state_dict() for each in models]
    result.load_state_dict({name: joint(name, [state[name] for state in states]) for name in states[0]})
    return result.eval()


def scalars(model: VSEModel) -> list[Tensor]:
    return [each for each in (model.logit_scale, model.logit_bias) if each is not None]


def joint(name: str, tensors: list[Tensor]) -> Tensor:
    """A weight of the joint model: stacked in a linear map and in a bias, on the diagonal in a head."""
    part = name.split(".")[0]
    if part not in JOINED:
        return tensors[0]
    return torch.block_diag(*tensors) if part.endswith("head") and tensors[0].ndim == 2 else torch.cat(tensors)


def check_untrained(models: Sequence[VSEModel], names: Sequence[str]) -> None:
    """Raises ValueError, before any training, for models that could not be joined after it."""
    trained = {name.split(".")[0] for name, each in models[0].named_parameters() if each.requires_grad} - {*JOINED}
    if trained and models[0].dual_encoder is None:
        raise ValueError(
            f"joined_seeds joins linear maps and heads, but {', '.join(sorted(trained))} would be trained too: give "
            "freeze_image_tower: true and freeze_text_tower: true, pooling and temperature that are not learned, or "
            "joined_seeds: 1"
        )
    joined_models(models, names)


def recipes_of_seeds(recipe: Recipe) -> list[Recipe]:
    """The runs of a joint model, which differ in seed alone and hold out the same images; none of them is pushed."""
    kept = {key: value for key, value in recipe.values.items() if key not in OF_THE_JOINT}
    kept["validation_seed"] = recipe.data.seed
    first: Any = recipe.values.get("seed", VSETrainingArguments.seed)
    return [
        replace(recipe, values=kept | {"seed": each, "output_dir": str(recipe.output_dir / SEEDS / str(each))})
        for each in range(first, first + recipe.values["joined_seeds"])
    ]
