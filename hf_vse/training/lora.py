"""Low-rank adapters of the towers, with `peft` (LoRA; Hu et al., arXiv 2106.09685).

Every linear layer in the blocks of a trained tower computes `W x + alpha / rank * B A x`, and of the tower only A and
B are trained; B starts at zero, so that training starts from the tower. What is not of an adapted tower (projection,
heads, temperature, a tower without such layers) is trained as without adapters. Layers of `nn.MultiheadAttention`,
which reads its weights itself, are left alone.

A saved model is an ordinary one, its weights `W + alpha / rank * B A`. A checkpoint has A and B in a file beside it;
training resumes from the W of the model that it started from.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_vse.model.modeling_vse import VSEModel
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.layers import blocks_of

ADAPTERS = "adapters.safetensors"
ADAPTER = "default"
BASE = ".base_layer"  # what the name of an adapted layer has in the names of its weights


def adapted_layers(model: VSEModel) -> dict[str, dict[str, nn.Linear]]:
    """The layers that get adapters, by tower and name."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, dict[str, nn.Linear]] = {}
    for side, tower in model.tower_modules().items():
        modules = [module for block in blocks_of(tower) for part in block for module in part.modules()]
        hidden = {
            id(each) for module in modules if isinstance(module, nn.MultiheadAttention) for each in module.modules()
        }
        found[side] = {
            names[module]: module
            for module in modules
            if isinstance(module, nn.Linear) and module.weight.requires_grad and id(module) not in hidden
        }
    return found


def check_adapters(model: VSEModel, args: VSETrainingArguments, sharded: bool = False) -> None:
    """Raises ValueError where `args` ask for adapters and there can be none; `freeze` has to be called before."""
    if not args.lora_rank:
        return
    if sharded:
        raise ValueError(
            f"lora_rank={args.lora_rank} needs whole weights in each process, but FSDP or DeepSpeed shards them: "
            "train with DDP, or give lora_rank: 0"
        )
    if find_spec("peft") is None:
        raise ValueError(f"lora_rank={args.lora_rank} needs peft: pip install 'hf_vse[lora]', or give lora_rank: 0")
    if not any(adapted_layers(model).values()):
        raise ValueError(
            f"lora_rank={args.lora_rank}, but no tower that is trained has blocks with linear layers: give towers "
            "that are transformers and do not freeze them, or lora_rank: 0"
        )


@contextmanager
def adapters(model: VSEModel, args: VSETrainingArguments) -> Iterator[None]:
    """Within, the towers have adapters if `args.lora_rank` asks for them; afterwards their layers have the sum."""
    learned = [(each, each.requires_grad) for each in model.parameters()]
    if args.lora_rank:
        add_adapters(model, args)
    try:
        yield
    finally:
        merge_adapters(model)
        for parameter, learns in learned:
            parameter.requires_grad_(learns)


def add_adapters(model: VSEModel, args: VSETrainingArguments) -> None:
    """Gives adapters to the towers, and takes the gradient from everything else of these towers."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = adapted_layers(model)
    towers = model.tower_modules()
    for part in (part for side in towers if layers[side] for part in towers[side]):
        part.requires_grad_(False)
    learned = [(each, each.requires_grad) for each in model.parameters()]
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=2 * args.lora_rank if args.lora_alpha is None else args.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=args.lora_dropout,
        target_modules=[name for of_tower in layers.values() for name in of_tower],
    )
    inject_adapter_in_model(config, model, ADAPTER)
    for parameter, learns in learned:  # peft freezes the heads too
        parameter.requires_grad_(learns)


def adapted_modules(model: nn.Module) -> dict[str, Any]:
    """The layers that have an adapter now, by name."""
    return {name: each for name, each in model.named_modules() if hasattr(each, "lora_A")}


def merge_adapters(model: VSEModel) -> None:
    """Leaves ordinary layers in the place of those with adapters."""
    for name, layer in adapted_modules(model).items():
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    if "peft_config" in vars(model):
        del model.peft_config


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": getattr(layer, part)[ADAPTER].weight.detach()
        for name, layer in adapted_modules(model).items()
        for part in ("lora_A", "lora_B")
    }


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the ordinary model."""
    state = {name.replace(BASE, ""): each for name, each in model.state_dict().items() if ".lora_" not in name}
    for name, layer in adapted_modules(model).items():
        state[f"{name}.weight"] = layer.get_base_layer().weight.detach() + layer.get_delta_weight(ADAPTER)
    return state


def save_adapters(model: nn.Module, folder: Path) -> None:
    """Writes A and B beside a saved model."""
    weights = {name: tensor.contiguous() for name, tensor in adapter_weights(model).items()}
    save_file(weights, folder / ADAPTERS, metadata={"format": "pt"})


@torch.no_grad()
def load_adapters(model: VSEModel, checkpoint: Path) -> None:
    """Goes on from a checkpoint: A and B from their file, everything that is not adapted from its model.

    Raises:
        ValueError: the checkpoint has other adapters or none, or its model is not this one plus the adapters.
    """
    saved = load_file(checkpoint / ADAPTERS) if (checkpoint / ADAPTERS).is_file() else {}
    own = adapter_weights(model)
    if {name: each.shape for name, each in saved.items()} != {name: each.shape for name, each in own.items()}:
        raise ValueError(
            f"{checkpoint} was written with {('other adapters' if own else 'adapters') if saved else 'no adapters'}: "
            "give the lora_rank and the freezing that it was trained with, or another output_dir"
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])
    check_sum(model, load_file(checkpoint / "model.safetensors"), checkpoint)


def check_sum(model: VSEModel, state: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Loads what is not adapted from the model of a checkpoint, and compares the rest."""
    adapted = {f"{name}.weight" for name in adapted_modules(model)}
    for name, tensor in merged_state(model).items():
        if name in adapted:
            if not torch.allclose(state[name].to(tensor.device), tensor, rtol=1e-4, atol=1e-6):
                raise ValueError(
                    f"{checkpoint} was trained from another model than this one ({name} differs): give the init_from "
                    "and the lora_alpha that it was trained with, or another output_dir"
                )
        else:
            tensor.copy_(state[name])
