"""Which parameters learn, and at what rate.

- `freeze`: whole towers, all but their last blocks, batch normalisations.
- `parameter_rates`: a rate for each tower, for the temperature, and rates that fall from the last block to the first
  (`layer_decay`; Clark et al., arXiv 2003.10555; BEiT, arXiv 2106.08254): with L blocks, block l = 0 ... L - 1 has the
  rate of its tower times decay^(L - l), embeddings decay^(L + 1), and what follows the blocks 1.
- `decayed_names`: weights of linear maps, convolutions and embeddings decay; norms, biases and the temperature do not.
"""

from collections import defaultdict
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hf_vse.model.modeling_vse import SCALARS, VSEModel
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.layers import layer_numbers

WHOLE = "dual_encoder."  # how the names begin of a dual encoder's parameters: its towers and what gives no vectors
# What training froze itself, by model: a second training may thaw it, but not what was frozen for another reason.
FROZEN: WeakKeyDictionary[nn.Module, list[nn.Parameter]] = WeakKeyDictionary()


def freeze(model: VSEModel, args: VSETrainingArguments) -> None:
    """Takes the gradient from what `args` freezes. What an earlier training of the model froze gets it back before.

    Raises:
        ValueError: no tower has as many blocks as are to be trained, or nothing is left to train.
    """
    for parameter in FROZEN.pop(model, []):
        parameter.requires_grad_(True)
    towers = model.tower_modules()
    whole = {"vision": args.freeze_image_tower, "text": args.freeze_text_tower}
    frozen = [each for side in towers if whole[side] for module in towers[side] for each in module.parameters()]
    if args.unfreeze_last_blocks is not None:
        frozen += below_last_blocks(towers, args.unfreeze_last_blocks)
    if args.freeze_batchnorm:
        norms = (each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm))
        frozen += [parameter for module in norms for parameter in module.parameters()]
    set_aside(model, frozen)
    heads = (each for name, each in model.named_parameters() if name not in SCALARS and not name.startswith(WHOLE))
    if all(whole.values()) and not any(each.requires_grad for each in heads):
        raise ValueError(
            "both towers are frozen and there is no head, so nothing but the temperature could learn: give "
            "projection_type linear or residual, or do not freeze one of the towers"
        )


def set_aside(model: VSEModel, parameters: Iterable[nn.Parameter]) -> None:
    """Takes the gradient from parameters, for this training."""
    taken = [each for each in parameters if each.requires_grad]
    for parameter in taken:
        parameter.requires_grad_(False)
    FROZEN.setdefault(model, []).extend(taken)


def below_last_blocks(towers: dict[str, list[nn.Module]], kept: int) -> list[nn.Parameter]:
    """The parameters of both towers before their last `kept` blocks; of a smaller tower its embeddings."""
    layers = {side: layer_numbers(tower) for side, tower in towers.items()}
    most = max(blocks for _, blocks in layers.values())
    if kept > most:
        raise ValueError(
            f"unfreeze_last_blocks={kept}, but the towers have at most {most} blocks: give a smaller number, or leave "
            "it out to train everything"
        )
    return [
        each
        for side, (numbers, blocks) in layers.items()
        for module in towers[side]
        for each in module.parameters()
        if numbers[id(each)] <= max(0, blocks - kept)
    ]


def unused_parameters(model: VSEModel, batch: dict[str, Tensor]) -> list[str]:
    """Names of trainable parameters that the loss does not reach, such as a pooler that `mean` pooling passes by."""
    was_training = model.training
    model.eval()
    model(**batch, return_loss=True).loss.backward()
    unused = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return unused


def decayed_names(model: nn.Module, names: list[str]) -> list[str]:
    """Those of the names that weight decay may pull to zero."""
    norms = (module for module in model.modules() if "norm" in type(module).__name__.lower())
    of_norms = {id(each) for module in norms for each in module.parameters(recurse=False)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [name for name in names if name not in SCALARS and id(parameters.get(name)) not in of_norms]


def parameter_rates(model: VSEModel, args: VSETrainingArguments) -> list[dict[int, float]]:
    """Rates by `id` of the parameter, for the image tower, the text tower, and the temperature with its bias; without
    the parameters that have the rate of everything else."""
    given = {"vision": args.image_tower_learning_rate, "text": args.text_tower_learning_rate}
    found = []
    for side, tower in model.tower_modules().items():
        numbers, blocks = layer_numbers(tower)
        scales = {each: args.layer_decay ** (blocks + 1 - number) for each, number in numbers.items()}
        own = given[side]
        rate = args.learning_rate if own is None else own
        found.append({each: rate * scale for each, scale in scales.items() if own is not None or scale != 1})
    of_scalars = args.temperature_learning_rate
    scalars = (parameter for name, parameter in model.named_parameters() if name in SCALARS)
    return [*found, {} if of_scalars is None else {id(each): of_scalars for each in scalars}]


def move_to_own_rates(optimizer: torch.optim.Optimizer, rates: dict[int, float]) -> None:
    """Moves parameters to groups with learning rates of their own; the other settings stay those of their group."""
    for group in list(optimizer.param_groups):
        of_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if id(parameter) in rates:
                of_rate[rates[id(parameter)]].append(parameter)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in rates]
        settings = {name: value for name, value in group.items() if name != "params"}
        for rate, parameters in of_rate.items():
            optimizer.add_param_group(settings | {"params": parameters, "lr": rate, "initial_lr": rate})
