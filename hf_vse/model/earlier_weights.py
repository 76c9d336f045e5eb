"""Weights that earlier versions saved, in the form of today.

Learned scalars had no dimension; now they have the shape (1,), because FSDP shards no scalars. transformers converts
them while it loads a folder. A folder that was published with such weights has the code for them beside it.
"""

from typing import Any

from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import SCALARS, VSEModel


class OneNumber(ConversionOps):
    """A tensor of one element, of whatever shape, as one of shape (1,)."""

    def convert(self, input_dict: dict[str, list[Tensor]], target_patterns: list[str], **kwargs) -> dict[str, Tensor]:
        ((tensor,),) = input_dict.values()
        return {target_patterns[0]: tensor.reshape(1)}

    @property
    def reverse_op(self) -> ConversionOps:
        """Saving asks for it; the shape of today is saved."""
        return OneNumber()


def load_from_state_dict(self: VSEModel, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
    """The same for `load_state_dict`, by which training continues."""
    for name in (f"{prefix}{each}" for each in SCALARS):
        if name in state_dict and state_dict[name].ndim == 0:
            state_dict[name] = state_dict[name].reshape(1)
    super(VSEModel, self)._load_from_state_dict(state_dict, prefix, *args)


VSEModel._load_from_state_dict = load_from_state_dict
register_checkpoint_conversion_mapping(
    VSEConfig.model_type, [WeightConverter(f"^{name}", f"^{name}", [OneNumber()]) for name in SCALARS], overwrite=True
)
