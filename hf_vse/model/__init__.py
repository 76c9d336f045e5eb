"""The model, and nothing else.

`*_vse.py` is the payload: flat files that travel to the Hub with the weights, are read by whoever trusts remote code,
and import nothing but their siblings. Cards and uploads are in `hf_vse.hub`.

For others: the configurations of `configuration_vse`; `VSEModel` and `VSEOutput` of `modeling_vse`; the processors of
`processing_vse`; `OBJECTIVES` and `contrastive_loss` of `losses_vse`.

The files without `_vse` add what only an installed package has. The Auto classes know the classes here, so that a
published directory is read without running the code in it. Weights of earlier versions are converted, and the text
tower is faster on the CPU.
"""

from transformers import AutoConfig, AutoImageProcessor

import hf_vse.model.earlier_weights  # noqa: F401
import hf_vse.model.recurrence  # noqa: F401
from hf_vse.model.configuration_vse import VSEConfig, VSEFeaturesConfig
from hf_vse.model.processing_vse import VSEFeatureProcessor

AutoConfig.register(VSEConfig.model_type, VSEConfig, exist_ok=True)
AutoImageProcessor.register(VSEFeaturesConfig, slow_image_processor_class=VSEFeatureProcessor, exist_ok=True)
