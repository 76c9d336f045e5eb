"""A model in the format of another library, to be published: its folder, and how that library loads it.

The snippets of the card are in `exported.md.j2`.
"""

from pathlib import Path
from typing import Any, NamedTuple

from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.hub.export import ONNX, OPEN_CLIP, SENTENCE, export_model
from hf_vse.model.dual_encoder_vse import DUAL_ENCODERS
from hf_vse.model.processing_vse import VSEProcessor

# What the Hub shows of a format: its library, and what may be done with it.
ON_HUB = {
    SENTENCE: ("sentence-transformers", "feature-extraction"),
    OPEN_CLIP: ("open_clip", "zero-shot-image-classification"),
    ONNX: ("onnx", "feature-extraction"),
}
# How a model of transformers gives the vectors of images and sentences, where it is not the usual way.
USUAL = "model.get_image_features(**images).pooler_output", "model.get_text_features(**texts).pooler_output"
VECTORS = {
    "blip": (
        "model.vision_proj(model.vision_model(**images).last_hidden_state[:, 0])",
        "model.text_proj(model.text_encoder(**texts).last_hidden_state[:, 0])",
    ),
    "flava": (f"{USUAL[0]}[:, 0]", f"{USUAL[1]}[:, 0]"),
}


class Exported(NamedTuple):
    """
    Attributes:
        format: see `formats_of`; `transformers` has become the family.
        folder: what `export_model` wrote.
        processor: how the model reads sentences.
    """

    format: str
    folder: Path
    processor: VSEProcessor

    def card_values(self) -> dict[str, Any]:
        """What `exported.md.j2` names."""
        how = DUAL_ENCODERS.get(self.format)
        return {
            "format": self.format,
            "model_class": how and how.model_class,
            "attention": how and how.attention,
            "vectors": VECTORS.get(self.format, USUAL),
            "processor": self.processor,
        }


def exported_model(directory: Path, format: str, folder: Path, repo_id: str) -> Exported:
    """Writes the model of a directory in another format, as it will be published; see `export_model`."""
    encoder = VSEEncoder.from_pretrained(directory, "cpu")
    record = export_model(encoder, format, folder, repo_id=repo_id)
    return Exported(record["format"], folder, encoder.processor)
