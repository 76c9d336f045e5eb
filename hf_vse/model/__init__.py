"""The published payload: flat files that travel to the Hub with the weights and import nothing but their siblings.

Where the package is installed, its own classes are made known to the Auto classes here, so that `VSEProcessor` and
`AutoConfig` read a published directory without running the code in it.
"""

from transformers import AutoConfig, AutoImageProcessor

from hf_vse.model.configuration_vse import VSEConfig, VSEFeaturesConfig
from hf_vse.model.processing_vse import VSEFeatureProcessor

AutoConfig.register(VSEConfig.model_type, VSEConfig, exist_ok=True)
AutoImageProcessor.register(VSEFeaturesConfig, slow_image_processor_class=VSEFeatureProcessor, exist_ok=True)
