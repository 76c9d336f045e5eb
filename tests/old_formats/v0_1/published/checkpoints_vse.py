"""What checkpoints of earlier versions hold otherwise, and how it is brought to the form of today.

Learned scalars had no dimension; now they have the shape (1,), because FSDP shards no scalars. transformers converts
them while it loads a folder, also where this file comes with the weights as remote code.
"""

from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from .configuration_vse import VSEConfig

SCALARS = ("logit_scale", "logit_bias")


class OneNumber(ConversionOps):
    """A tensor of one element, of whatever shape, as one of shape (1,)."""

    def convert(self, input_dict: dict[str, list[Tensor]], target_patterns: list[str], **kwargs) -> dict[str, Tensor]:
        ((tensor,),) = input_dict.values()
        return {target_patterns[0]: tensor.reshape(1)}

    @property
    def reverse_op(self) -> ConversionOps:
        """Saving asks for it; what is saved has the shape of today."""
        return OneNumber()


register_checkpoint_conversion_mapping(
    VSEConfig.model_type, [WeightConverter(f"^{name}", f"^{name}", [OneNumber()]) for name in SCALARS], overwrite=True
)

__all__ = ["SCALARS", "OneNumber"]
