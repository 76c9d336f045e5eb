"""Configuration of a visual-semantic embedding: two towers, how they are pooled and projected, and the objective.

A setting stands here if it changes what the weights mean. How training is executed stands in `VSETrainingArguments`.
"""

from typing import Any, Literal, get_args

from transformers import AutoConfig, PreTrainedConfig

LossType = Literal["nce", "hardnce", "hardnce_smooth", "hinge_sum", "hinge_max", "clip", "siglip"]
PoolingType = Literal["mean", "max", "last", "cls", "gpo", "pooler"]
ProjectionType = Literal["linear", "mlp", "residual"]
NormType = Literal["none", "l2", "rms"]
HeadInit = Literal["xavier", "identity"]
CHOICES = {
    "loss_type": LossType,
    "vision_pooling": PoolingType,
    "text_pooling": PoolingType,
    "projection_type": ProjectionType,
    "head_init": HeadInit,
    "vision_norm": NormType,
    "text_norm": NormType,
}

GRU_MODEL_TYPE = "vse_gru_text"
FEATURES_MODEL_TYPE = "vse_features"


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


class VSEFeaturesConfig(PreTrainedConfig):
    """Takes the place of an image tower whose outputs were computed beforehand.

    Args:
        hidden_size: size of one feature vector, whether there is one for an image or one for each region.
    """

    model_type = FEATURES_MODEL_TYPE

    hidden_size: int = 2048


AutoConfig.register(GRU_MODEL_TYPE, VSEGRUTextConfig, exist_ok=True)
AutoConfig.register(FEATURES_MODEL_TYPE, VSEFeaturesConfig, exist_ok=True)


def tower_config(name: str, value: Any, default: str) -> PreTrainedConfig:
    """The configuration of one tower from a configuration, a dict with `model_type`, or None for the default."""
    if isinstance(value, PreTrainedConfig):
        return value
    values = {} if value is None else dict(value)
    model_type = values.pop("model_type", default)
    try:
        return AutoConfig.for_model(model_type, **values)
    except ValueError as error:
        raise ValueError(
            f"{name}: model_type {model_type!r} is neither a transformers model nor {GRU_MODEL_TYPE!r} nor "
            f"{FEATURES_MODEL_TYPE!r}; name the model_type of the tower you want"
        ) from error


class VSEConfig(PreTrainedConfig):
    """Configuration of `VSEModel`.

    Args:
        vision_config: any transformers vision model (`{"model_type": "vit", ...}`), any timm model
            (`{"model_type": "timm_wrapper", "architecture": "resnet152"}`), or `{"model_type": "vse_features",
            "hidden_size": 2048}` for precomputed features.
        text_config: `{"model_type": "vse_gru_text", ...}` or any transformers text model.
        vision_pooling, text_pooling: how the states of a tower become one vector. `mean` and `max` over positions,
            `last` (last word), `cls` (first position), `gpo` (generalized pooling operator), `pooler` (the tower's own
            pooled output).
        vision_hidden_size: size of the image tower's states; only needed where its configuration does not tell.
        vision_norm, text_norm: what pooled vectors are scaled to before the projection: `l2` length one, as the paper
            does with images; `rms` root mean square one, which lets the projection learn faster; `none`.
        vision_power: exponent of the pooled image features, their signs kept; 0.5 tames the few strong ones (signed
            square root, Perronnin et al., ECCV 2010).
        feature_dropout, head_dropout: share of pooled features, and of the head's inner features, set to zero in
            training.
        projection_type: `linear`; `mlp`, the paper's head Linear(d, 2d) - ReLU - Linear(2d, d) on top of it; or
            `residual`, the head added to what it reads.
        head_init: how an `mlp` head starts: `xavier` as published, or `identity`, giving what it reads, so that
            training starts from the linear map and fresh heads lose nothing of a base embedding.
        projection_dim: dimension of the common space.
        loss_type: the objective, see `losses_vse.py`.
        temperature: divisor of the similarities; the initial value where the objective learns it (`clip`, `siglip`).
        margin: margin of `hinge_*` and `hardnce*`, in units of cosine similarity.
        logit_bias_init: initial bias of `siglip`.
    """

    model_type = "vse"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_pooling: PoolingType = "mean"
    text_pooling: PoolingType = "last"
    vision_hidden_size: int | None = None
    vision_norm: NormType = "l2"
    text_norm: NormType = "none"
    vision_power: float | int = 1.0
    feature_dropout: float | int = 0.0
    head_dropout: float | int = 0.0
    projection_type: ProjectionType = "linear"
    head_init: HeadInit = "xavier"
    projection_dim: int = 1024
    loss_type: LossType = "nce"
    temperature: float | int = 0.1
    margin: float | int = 0.2
    logit_bias_init: float | int = -10.0

    def __post_init__(self, **kwargs):
        self.vision_config = tower_config("vision_config", self.vision_config, default="resnet")
        self.text_config = tower_config("text_config", self.text_config, default=GRU_MODEL_TYPE)
        for name, literal in CHOICES.items():
            if getattr(self, name) not in get_args(literal):
                raise ValueError(f"{name} must be one of {', '.join(get_args(literal))}, got {getattr(self, name)!r}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}; the paper uses 0.1")
        for name in ("feature_dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share from 0 to below 1, got {getattr(self, name)}")
        if self.vision_power <= 0:
            raise ValueError(f"vision_power must be positive, got {self.vision_power}; 1 leaves features as they are")
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, got {self.margin}; the paper uses 0.2")
        super().__post_init__(**kwargs)


VSEConfig.register_for_auto_class()

__all__ = ["VSEConfig", "VSEFeaturesConfig", "VSEGRUTextConfig"]
