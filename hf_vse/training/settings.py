"""The keys of a recipe: each is defined where it acts, and collected here.

The options of `load_pairs` and the fields of `VSEConfig` and `VSETrainingArguments` are keys as they are, with their
types, defaults and texts. `OwnDataArguments` and `OwnModelArguments` add what a run alone needs.
"""

from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from typing import Any

from transformers import PreTrainedConfig

from hf_vse.data.sources import SOURCES, VALIDATION_SHARE, load_pairs
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.documented import fields_of_config, fields_of_function
from hf_vse.training.limits import TOWERS


def setting(default: Any, text: str) -> Any:
    """A dataclass field with its line of help."""
    return field(default=default, metadata={"help": text})


RESIZE, CROP = 256, 224  # of images for a tower that says nothing else: the paper's evaluation transform
# Options of `load_pairs` that are no keys: `seed` and `max_broken_share` belong to training, the cache to the machine.
NO_KEYS = ("max_broken_share", "seed", "cache_dir")


@dataclass(frozen=True)
class OwnDataArguments:
    """Keys of the data beside the options of `load_pairs`."""

    dataset: str = setting("scenes", f"One of {', '.join(SOURCES)}, a local path, or a data set of the Hub, org/name.")
    validation_share: float = setting(VALIDATION_SHARE, "Held out for validation where the data have no such split.")
    validation_seed: int | None = setting(None, "Decides which images are held out; default: seed.")
    near_duplicates: str = setting(
        "auto",
        "How near-duplicate images are found, which are held out together and are no negatives: hash of photographs, "
        "vectors (cosine above 0.9 of precomputed features), none; auto is hash for photographs of your own.",
    )
    group_column: str | None = setting(
        None, "Column with equal values for images of one product or event, which are treated like near-duplicates."
    )


@dataclass(frozen=True)
class OwnModelArguments:
    """Keys of the model beside the fields of `VSEConfig`: towers, and how images and words are prepared."""

    init_from: str | None = setting(
        None, "Model to start from, folder or Hub id: ours, CLIP, SigLIP, ...; fields given override it."
    )
    image_tower: str | None = setting(None, "Pretrained image tower, folder or Hub id; or give vision_config.")
    image_tower_weights: str | None = setting(None, "Safetensors file with the weights of a timm image_tower.")
    text_tower: str | None = setting(None, "Pretrained text tower, folder or Hub id; or give text_config.")
    vision_config: dict | None = setting(None, "Configuration of an image tower with fresh weights.")
    text_config: dict | None = setting(None, "Configuration of a text tower; default: the paper's GRU.")
    min_word_count: int = setting(4, "Words that occur less often in the training captions are unknown.")
    max_length: int = setting(64, "Words of a caption, start and end included; longer ones are cut.")
    resize: int | None = setting(None, "Shorter side of an image before the crop; default: the tower's own, or 256.")
    crop: int | None = setting(None, "Side of the square that the image tower sees; default: its own, or 224.")
    image_mean: list | None = setting(None, "Three numbers; default: those of the tower, or of ImageNet.")
    image_std: list | None = setting(None, "Three numbers; default: those of the tower, or of ImageNet.")

    @property
    def config_options(self) -> dict[str, Any]:
        """Fields of `VSEConfig` that are given here, without the towers."""
        return {name: value for name in CONFIG_FIELDS if (value := getattr(self, name)) is not None}


OF_LOADING = fields_of_function(load_pairs, leave_out=NO_KEYS)
OF_CONFIG = fields_of_config(VSEConfig, PreTrainedConfig, leave_out=(*TOWERS, "dual_encoder_config"))
CONFIG_FIELDS = tuple(name for name, _, _ in OF_CONFIG)
DataArguments: Any = make_dataclass("DataArguments", OF_LOADING, bases=(OwnDataArguments,), frozen=True)
ModelArguments: Any = make_dataclass("ModelArguments", OF_CONFIG, bases=(OwnModelArguments,), frozen=True)

SECTIONS = {"data": DataArguments, "model": ModelArguments, "training": VSETrainingArguments}


def known_keys() -> dict[str, Field]:
    return {item.name: item for section in SECTIONS.values() for item in fields(section) if item.init}


def defaults_of_keys() -> dict[str, Any]:
    """What each key is where nobody gives it."""
    found = known_keys().items()
    return {
        key: item.default_factory() if item.default_factory is not MISSING else item.default for key, item in found
    }
