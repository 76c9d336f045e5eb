"""Configuration of a visual-semantic embedding: two towers, how they are pooled and projected, and the objective.

A setting is here if it changes the meaning of the weights. `VSETrainingArguments` says how training is executed.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args, get_origin

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .dual_encoder_vse import DUAL_ENCODERS
from .losses_vse import OBJECTIVES, OWN, SETTINGS

PoolingType = Literal["mean", "max", "last", "cls", "gpo", "pooler"]
ProjectionType = Literal["linear", "mlp", "residual", "none"]
NormType = Literal["none", "l2", "rms"]
HeadInit = Literal["xavier", "identity"]

GRU_MODEL_TYPE = "vse_gru_text"
FEATURES_MODEL_TYPE = "vse_features"
# Fields that the dual encoder of a `dual_encoder_config` decides.
OF_DUAL_ENCODER = (
    "vision_config", "text_config", "vision_pooling", "text_pooling", "text_layers", "vision_hidden_size",
    "projection_dim",
)  # fmt: skip
# Dual encoders that read sentences of full length without a mask, which the pipeline of transformers does not give.
NO_ZERO_SHOT_PIPELINE = ("siglip", "siglip2")
NO_PICTURES = (FEATURES_MODEL_TYPE, "siglip2_vision_model")  # towers that read features, or patches in a sequence
MOST_LAYERS = 1000  # of a tower; a configuration that asks for more is damaged


class Number(NamedTuple):
    """What a number of a configuration may be: finite, and one for which `fits` is true.

    Attributes:
        must: how an error says so.
        hint: what to write instead.
    """

    must: str
    hint: str
    fits: Callable[[float], bool] = lambda value: True
    whole: bool = False
    optional: bool = False


SIZE = Number("must be a whole number from 1 on", "write a size such as 1024", lambda value: value >= 1, whole=True)
SHARE = Number("is a share from 0 to below 1", "0 drops nothing", lambda value: 0 <= value < 1)
LAYERS = Number(
    f"must be a whole number from 1 to {MOST_LAYERS}", "1 is usual", lambda value: 1 <= value <= MOST_LAYERS, True
)
NUMBERS = {
    "projection_dim": SIZE,
    "vision_hidden_size": SIZE._replace(optional=True),
    "text_layers": LAYERS,
    "vision_power": Number("must be positive and at most 10", "1 leaves features as they are", lambda v: 0 < v <= 10),
    "feature_dropout": SHARE,
    "head_dropout": SHARE,
    "temperature": Number("must be positive", "the paper uses 0.1", lambda value: value > 0),
    "margin": Number("must not be negative", "the paper uses 0.2", lambda value: value >= 0),
    "logit_bias_init": Number("must be a finite number", "SigLIP uses -10"),
    "image_weight": Number("is a share from 0 to 1", "0.5 weighs both directions alike", lambda v: 0 <= v <= 1),
    "positive_margin": Number("lies between -2 and 2", "cosines differ by 2 at most", lambda v: -2 <= v <= 2),
    "hardness": Number("must lie from 0 to 100", "0 weighs all negatives alike", lambda v: 0 <= v <= 100),
    "false_negative_gap": Number("lies between -2 and 2", "2 leaves none out", lambda v: -2 <= v <= 2),
    "negatives_kept": Number("must be a whole number from 0 on", "0 keeps all", lambda v: v >= 0, whole=True),
}
GRU_NUMBERS = {"vocab_size": SIZE, "word_dim": SIZE, "hidden_size": SIZE, "num_layers": LAYERS, "dropout": SHARE}


def check_numbers(config: PreTrainedConfig, numbers: dict[str, Number]) -> None:
    """Raises ValueError for a field that is not a number, not finite, or not one that fits."""
    for name, number in numbers.items():
        value = getattr(config, name)
        if number.optional and value is None:
            continue
        known = isinstance(value, int if number.whole else int | float) and not isinstance(value, bool)
        if not known or not math.isfinite(value) or not number.fits(value):
            raise ValueError(f"{name} {number.must}, got {value!r:.60}; {number.hint}")


def check_layers(name: str, values: dict[str, Any]) -> None:
    """Raises ValueError for so many layers that building them would not end."""
    for key, value in values.items():
        if "layers" in str(key) or "depth" in str(key):
            counts = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(count, int | float) and count > MOST_LAYERS for count in counts):
                raise ValueError(f"{name}: {key} asks for {value!r:.60} layers; at most {MOST_LAYERS} are built")
        if isinstance(value, dict):
            check_layers(f"{name}.{key}", value)


class VSEGRUTextConfig(PreTrainedConfig):
    """The paper's text tower: word embedding and gated recurrent unit (arXiv 2110.08872; VSE++, arXiv 1707.05612).

    Args:
        vocab_size: rows of the word embedding; comes from the tokenizer.
        word_dim: size of a word vector.
        hidden_size: size of the recurrent state, and of the output.
        num_layers: recurrent layers.
        bidirectional: read the sentence both ways and average the two states of every word.
        dropout: share of word-vector entries set to zero in training.
        pad_token_id, bos_token_id, eos_token_id: as `train_word_tokenizer` numbers them.
    """

    model_type = GRU_MODEL_TYPE

    vocab_size: int = 10_000
    word_dim: int = 300
    hidden_size: int = 1024
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | None = 3

    def __post_init__(self, **kwargs):
        check_numbers(self, GRU_NUMBERS)
        super().__post_init__(**kwargs)


class VSEFeaturesConfig(PreTrainedConfig):
    """Takes the place of an image tower whose outputs were computed beforehand.

    Args:
        hidden_size: size of one feature vector, whether there is one for an image or one for each region.
    """

    model_type = FEATURES_MODEL_TYPE

    hidden_size: int = 2048

    def __post_init__(self, **kwargs):
        check_numbers(self, {"hidden_size": SIZE})
        super().__post_init__(**kwargs)


AutoConfig.register(GRU_MODEL_TYPE, VSEGRUTextConfig, exist_ok=True)
AutoConfig.register(FEATURES_MODEL_TYPE, VSEFeaturesConfig, exist_ok=True)


def tower_config(name: str, value: Any, default: str | None = None) -> PreTrainedConfig:
    """The configuration of a tower, or of a dual encoder, from a configuration, a dict with `model_type`, or None for
    the default."""
    if isinstance(value, PreTrainedConfig):
        return value
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} must be the configuration of a tower, an object with model_type, got {value!r:.60}")
    values = dict(value or {})
    model_type = values.pop("model_type", default)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{name}: model_type {model_type!r:.60} is neither a transformers model nor {GRU_MODEL_TYPE!r} nor "
            f"{FEATURES_MODEL_TYPE!r}; name the model_type of the tower you want"
        )
    check_layers(name, values)
    try:
        return AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: {reason}; write a value that a {model_type} has") from error


def dual_encoder_config(value: Any) -> PreTrainedConfig:
    config = tower_config("dual_encoder_config", value)
    if config.model_type not in DUAL_ENCODERS:
        known = ", ".join(DUAL_ENCODERS)
        raise ValueError(f"dual_encoder_config: {config.model_type!r} is no known dual encoder: give one of {known}")
    return config


class VSEConfig(PreTrainedConfig):
    """Configuration of `VSEModel`.

    Args:
        vision_config: any transformers vision model (`{"model_type": "vit", ...}`), any timm model
            (`{"model_type": "timm_wrapper", "architecture": "resnet152"}`), or `{"model_type": "vse_features",
            "hidden_size": 2048}` for precomputed features.
        text_config: `{"model_type": "vse_gru_text", ...}` or any transformers text model.
        dual_encoder_config: of a whole dual encoder of transformers (`{"model_type": "clip", ...}`), whose own
            functions give the vectors; `vision_config`, `text_config` and the poolings are then its own.
        vision_pooling, text_pooling: how the states of a tower become one vector. `mean` and `max` over positions,
            `last` (last word), `cls` (first position), `gpo` (generalized pooling operator), `pooler` (the tower's own
            pooled output).
        text_layers: of the text tower so many last layers are pooled, one beside the other.
        vision_hidden_size: size of the image tower's states; only needed where its configuration does not tell.
        vision_norm, text_norm: what pooled vectors are scaled to before the projection: `l2` length one, as the paper
            does with images; `rms` root mean square one, which lets the projection learn faster; `none`.
        vision_power: exponent of the pooled image features, their signs kept; 0.5 tames the few strong ones (signed
            square root, Perronnin et al., ECCV 2010).
        mirror_average: except in training, pool a picture and its mirror image to their mean; costs twice as much.
        feature_dropout, head_dropout: share of pooled features, and of the head's inner ones, dropped in training.
        projection_type: `linear`; `mlp`, the paper's head Linear(d, 2d) - ReLU - Linear(2d, d) on top of it; or
            `residual`, the head added to what it reads, which starts as zero. On a dual encoder also `none`, and
            `linear` is a square map that starts as the identity.
        head_init: how an `mlp` head starts: `xavier` as published, or `identity`, which loses nothing that it reads.
        projection_dim: dimension of the common space.
        loss_type: the objective: nce, hardnce, hardnce_smooth, hinge_sum, hinge_max, clip or siglip (`losses_vse.py`),
            or a function in a file of your own, my_loss.py:my_row_loss.
        temperature: divisor of the similarities; the initial value where the objective learns it.
        margin: of a hinge or a hardest-negative objective, in units of cosine similarity.
        logit_bias_init: initial bias, where the objective has one.
        image_weight: share of image-to-text in the loss, from 0 to 1; the rest is text-to-image (ConVIRT uses 0.75).
        positive_margin: of nce and clip, subtracted from the positive's similarity (additive margin); may be negative.
        hardness: of nce and clip, how much negatives count by their similarity (arXiv 2010.04592); 0 all alike.
        negatives_kept: of nce and clip, so many of the hardest negatives of an image or sentence count; 0 keeps all.
        false_negative_gap: of nce and clip, negatives are left out that exceed the positive's similarity by more, as
            they may be true; 0 leaves out all above the positive (semi-hard), 2 none.
    """

    model_type = "vse"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "dual_encoder_config": AutoConfig}

    vision_config: Any = None  # these three: given as a dict or a configuration, which it becomes
    text_config: Any = None
    dual_encoder_config: Any = None
    vision_pooling: PoolingType = "mean"
    text_pooling: PoolingType = "last"
    text_layers: int = 1
    vision_hidden_size: int | None = None
    vision_norm: NormType = "l2"
    text_norm: NormType = "none"
    vision_power: float | int = 1.0
    mirror_average: bool = False
    feature_dropout: float | int = 0.0
    head_dropout: float | int = 0.0
    projection_type: ProjectionType = "linear"
    head_init: HeadInit = "xavier"
    projection_dim: int = 1024
    loss_type: str = "nce"
    temperature: float | int = 0.1
    margin: float | int = 0.2
    logit_bias_init: float | int = -10.0
    image_weight: float | int = 0.5
    positive_margin: float | int = 0.0
    hardness: float | int = 0.0
    negatives_kept: int = 0
    false_negative_gap: float | int = 2.0

    def __post_init__(self, **kwargs):
        if self.dual_encoder_config is None:
            self.vision_config = tower_config("vision_config", self.vision_config, default="resnet")
            self.text_config = tower_config("text_config", self.text_config, default=GRU_MODEL_TYPE)
        else:
            both = self.dual_encoder_config = dual_encoder_config(self.dual_encoder_config)
            self.vision_config = both.image_config if both.model_type == "flava" else both.vision_config
            self.text_config = both.text_config
            self.vision_pooling = self.text_pooling = "pooler"
            self.text_layers, self.vision_hidden_size = 1, None
            self.sub_configs = {"dual_encoder_config": AutoConfig}  # which holds the other two
        kinds = VSEConfig.__annotations__.items()
        words = {name: get_args(kind) for name, kind in kinds if get_origin(kind) is Literal}
        if not OWN.fullmatch(str(self.loss_type)):
            words["loss_type"] = tuple(OBJECTIVES)
        for name, choices in words.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r:.60}")
        if self.projection_type == "none" and self.dual_encoder_config is None:
            raise ValueError("projection_type 'none' needs a dual_encoder_config; towers have 'linear'")
        if self.mirror_average not in (False, self.vision_config.model_type not in NO_PICTURES):
            raise ValueError(
                f"mirror_average {self.mirror_average!r:.60} needs a tower of whole pictures: write true or false"
            )
        check_numbers(self, NUMBERS)
        given = 1 + (0 if self.text_pooling == "pooler" else getattr(self.text_config, "num_hidden_layers", 0))
        if self.text_layers > given:
            raise ValueError(f"text_layers is at most {given} with this tower and pooling, got {self.text_layers}")
        for name in ("positive_margin", "hardness", "negatives_kept", "false_negative_gap"):
            users, idle = [each for each, chosen in OBJECTIVES.items() if name in chosen.settings], SETTINGS[name]
            if getattr(self, name) != idle and self.loss_type in OBJECTIVES and self.loss_type not in users:
                raise ValueError(
                    f"{name} {getattr(self, name)} does nothing with loss_type {self.loss_type!r}: set it to "
                    f"{idle:g}, or choose one of {', '.join(users)}"
                )
        super().__post_init__(**kwargs)

    @property
    def objective_settings(self) -> dict[str, Any]:
        """What `contrastive_loss` takes of the fields; a model may have learned another temperature."""
        names = ("loss_type", "image_weight", *(SETTINGS.keys() & NUMBERS.keys()))
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if self.dual_encoder_config is not None:
            del values["vision_config"], values["text_config"], values["sub_configs"]
        return values


def check_changes(source: VSEConfig, changes: dict[str, Any]) -> None:
    """Raises ValueError for changed fields that a dual encoder decides itself and that would do nothing."""
    both = source.dual_encoder_config
    for name in OF_DUAL_ENCODER if both is not None else ():
        if name in changes and changes[name] != getattr(source, name):
            raise ValueError(
                f"{name} {changes[name]!r:.60} does nothing: the {both.model_type} model that this one starts from "
                f"decides it: leave it out"
            )


VSEConfig.register_for_auto_class()

__all__ = ["VSEConfig", "VSEFeaturesConfig", "VSEGRUTextConfig"]
