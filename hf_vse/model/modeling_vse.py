"""Visual-semantic embedding: an image tower and a text tower map to the unit sphere of one space.

The architecture is that of Jain & Verma, "Contrastive Learning of Visual-Semantic Embeddings" (arXiv 2110.08872):
tower, pooling, length one, linear map, and optionally the head Linear(d, 2d) - ReLU - Linear(2d, d), which is kept at
test time. `VSEConfig` chooses the towers, their pooling, the projection and the objective.
"""

import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_vse import FEATURES_MODEL_TYPE, GRU_MODEL_TYPE, NO_ZERO_SHOT_PIPELINE, VSEConfig, check_changes
from .dual_encoder_vse import build_dual_encoder, fields_of_source, modules_of_towers, tower_output, with_pooled
from .losses_vse import OBJECTIVES, contrastive_loss
from .pooling_vse import Pooling
from .projection_vse import IdentityLinear, MirroredLinear, PooledFeatures, ProjectionHead, ZeroLinear
from .sentence_transformers_vse import write_sentence_files
from .towers_vse import PrecomputedFeatures, build_tower, state_sequence, vision_hidden_size

# exp(7) = 1,097: published models fit under it (CLIP stores log 100, SigLIP up to log 118), products of float32 are
# still exact to 1e-4 of a logit, and no precision rounds it, so that a parameter at the limit keeps its gradient.
MAX_LOGIT_SCALE = 7.0
SCALARS = ("logit_scale", "logit_bias")  # learned; of shape (1,), because FSDP shards no scalars
ZERO_SHOT_CLASS = "AutoModelForZeroShotImageClassification"  # what the pipeline of that name loads
FEATURES_INSTEAD = "give pixel_values, or image_features to a model of precomputed features"


@dataclass
class VSEOutput(ModelOutput):
    """What `VSEModel` returns; embeddings are unit vectors in float32.

    Args:
        loss: scalar, with `return_loss=True`.
        logits_per_image: (images, texts) similarities divided by the temperature, plus the bias where there is one.
        logits_per_text: its transpose.
        image_embeds: (images, projection_dim).
        text_embeds: (texts, projection_dim).
        temperature: scalar, the divisor of the similarities; carries a gradient where it is learned.
        logit_bias: scalar, likewise.
        vision_model_output, text_model_output: the states of the towers, where recording was asked for.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    temperature: Tensor | None = None
    logit_bias: Tensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None


class VSEPreTrainedModel(PreTrainedModel):
    config: VSEConfig
    config_class = VSEConfig
    base_model_prefix = "vse"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if isinstance(module, ZeroLinear):
                init.zeros_(module.weight)
            elif isinstance(module, IdentityLinear | MirroredLinear):
                init.copy_(module.weight, module.starting_weight())
            else:
                init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -0.1, 0.1)
        elif isinstance(module, nn.GRU):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, VSEModel):
            if module.logit_scale is not None:
                init.constant_(module.logit_scale, min(-math.log(self.config.temperature), MAX_LOGIT_SCALE))
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init)


class VSEModel(VSEPreTrainedModel):
    """Image-text dual encoder.

    Example:
        model = AutoModel.from_pretrained("org/vse-hardnce", trust_remote_code=True)
        processor = AutoProcessor.from_pretrained("org/vse-hardnce", trust_remote_code=True)
        outputs = model(**processor(images=photos, text=sentences))
        outputs.logits_per_text.argmax(dim=1)  # for each sentence the best photo
    """

    def __init__(self, config: VSEConfig):
        super().__init__(config)
        dim = config.projection_dim
        self.dual_encoder: PreTrainedModel | None = None
        self.vision_pooling = Pooling(config.vision_pooling)
        self.text_pooling = Pooling(config.text_pooling)
        if config.dual_encoder_config is None:
            self.build_towers(config)
        else:
            self.dual_encoder = build_dual_encoder(config.dual_encoder_config)
            self.pooled_sizes = {"vision": dim, "text": dim}
            square: type[nn.Module] = IdentityLinear if config.projection_type == "linear" else nn.Identity
            self.visual_projection, self.text_projection = square(dim), square(dim)
        self.visual_input = PooledFeatures(config.vision_norm, config.vision_power, config.feature_dropout)
        self.text_input = PooledFeatures(config.text_norm, 1.0, config.feature_dropout)
        self.visual_head: nn.Module = nn.Identity()
        self.text_head: nn.Module = nn.Identity()
        if config.projection_type in ("mlp", "residual"):
            settings = config.head_dropout, config.projection_type == "residual", config.head_init == "identity"
            self.visual_head, self.text_head = ProjectionHead(dim, *settings), ProjectionHead(dim, *settings)
        learned = OBJECTIVES[config.loss_type].learned if config.loss_type in OBJECTIVES else ()  # a file's: nothing
        self.logit_scale = nn.Parameter(torch.empty(1)) if "temperature" in learned else None
        self.logit_bias = nn.Parameter(torch.empty(1)) if "logit_bias" in learned else None
        text = set(chain.from_iterable(tower.modules() for tower in self.tower_modules()["text"]))
        tables = {name: each for name, each in self.named_modules() if isinstance(each, nn.Embedding) and each in text}
        words = config.text_config.vocab_size
        self.word_embedding = next((name for name, each in tables.items() if each.num_embeddings == words), None)
        self.post_init()

    def build_towers(self, config: VSEConfig) -> None:
        """The two towers, and the linear maps to the common space."""
        dim = config.projection_dim
        self.vision_model = build_tower(config.vision_config)
        self.text_model = build_tower(config.text_config)
        vision_dim = config.vision_hidden_size or vision_hidden_size(config.vision_config, self.vision_model)
        text_dim = config.text_config.hidden_size * config.text_layers
        self.pooled_sizes = {"vision": vision_dim, "text": text_dim}
        self.visual_projection = nn.Linear(vision_dim, dim)
        direct = config.text_config.model_type == GRU_MODEL_TYPE and text_dim == dim  # as the paper does
        self.text_projection = nn.Identity() if direct else nn.Linear(text_dim, dim)

    @classmethod
    def from_towers(
        cls,
        image: PreTrainedModel | PreTrainedConfig | dict | str,
        text: PreTrainedModel | PreTrainedConfig | dict | str,
        **config_kwargs,
    ) -> "VSEModel":
        """A model on top of two towers, pretrained ones keeping their weights.

        Args:
            image, text: a model, the name or folder of a pretrained one, or a configuration for fresh weights.
            config_kwargs: fields of `VSEConfig`.
        """
        towers = [AutoModel.from_pretrained(tower) if isinstance(tower, str) else tower for tower in (image, text)]
        configs = [tower.config if isinstance(tower, PreTrainedModel) else tower for tower in towers]
        model = cls(VSEConfig(vision_config=configs[0], text_config=configs[1], **config_kwargs))
        for name, tower in zip(("vision_model", "text_model"), towers, strict=True):
            if isinstance(tower, PreTrainedModel):
                setattr(model, name, tower)
        return model

    @classmethod
    def from_dual_encoder(cls, source: PreTrainedModel, **config_kwargs) -> "VSEModel":
        """A model that starts as a pretrained dual encoder: same vectors, same objective, temperature and bias.

        Args:
            source: one of `DUAL_ENCODERS`; its weights are copied.
            config_kwargs: fields of `VSEConfig` that differ; ValueError for one that the source decides.
        """
        fields = fields_of_source(source)
        check_changes(VSEConfig(**fields), config_kwargs)
        model = cls(VSEConfig(**fields | config_kwargs))
        model.get_submodule("dual_encoder").load_state_dict(source.state_dict())
        return model

    def tower_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of the image tower, `vision`, and of the text tower, `text`."""
        if self.dual_encoder is None:
            return {"vision": [self.vision_model], "text": [self.text_model]}
        return modules_of_towers(self.dual_encoder)

    def train(self, mode: bool = True) -> "VSEModel":
        """Training mode; a tower or a batch normalisation without trainable parameters stays in evaluation mode, so
        that it computes the same in every step."""
        super().train(mode)
        norms = (module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        for module in (*chain.from_iterable(self.tower_modules().values()), *norms):
            trainable = [parameter.requires_grad for parameter in module.parameters()]
            if trainable and not any(trainable):
                module.eval()
        return self

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs) -> None:
        """As in transformers; the folder also serves its pipelines and sentence-transformers."""
        known = getattr(self.config, "auto_map", None) or {}
        whole = getattr(self.config.dual_encoder_config, "model_type", None)
        classes = ("AutoModel",) if whole in NO_ZERO_SHOT_PIPELINE else ("AutoModel", ZERO_SHOT_CLASS)
        self.config.auto_map = known | dict.fromkeys(classes, "modeling_vse.VSEModel")
        if is_main_process:
            write_sentence_files(save_directory, self.config.vision_config.model_type != FEATURES_MODEL_TYPE)
        # FSDP gives a model another class, which stands in no file.
        defined = next(each for each in type(self).__mro__ if not issubclass(each, FSDPModule))
        sharded, self.__class__ = self.__class__, defined  # type: ignore[assignment]
        try:
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        finally:
            self.__class__ = sharded

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule(self.word_embedding)

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.set_submodule(self.word_embedding, value)
        self.config.text_config.vocab_size = value.num_embeddings

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_mask: Tensor | None = None,
        **options: Tensor | bool | None,
    ) -> BaseModelOutputWithPooling:
        """Embeds images.

        Args:
            pixel_values: (batch, channels, height, width).
            image_features: (batch, dim) or (batch, regions, dim), instead of photographs: the input of a model of
                precomputed features, or what `pool_images` gave for each photograph.
            image_mask: (batch, regions), 1 where a region counts.
            options: `pixel_attention_mask` (batch, patches) and `spatial_shapes` (batch, 2), of images in their own
                aspect ratio; `output_hidden_states`, `output_attentions` of the tower.

        Returns:
            `pooler_output` (batch, projection_dim), unit vectors; `last_hidden_state`, the states of the tower.
        """
        output = self.pool_images(pixel_values, image_features, image_mask, False, **options)
        embeds = self.visual_head(self.visual_projection(self.visual_input(output.pooler_output)))
        output.pooler_output = F.normalize(embeds.float(), dim=-1)
        return output

    def pool_images(
        self,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_mask: Tensor | None = None,
        alone: bool = False,
        **options: Tensor | bool | None,
    ) -> BaseModelOutputWithPooling:
        """States of the image tower and their pooled vector (batch, hidden), which a frozen tower computes only once.

        Fed back as `image_features`, the vector takes the place of the photograph. In evaluation mode
        `config.mirror_average` adds that of the mirror image, but with `alone`.
        """
        if image_features is not None:
            tower = PrecomputedFeatures()(image_features.to(self.dtype))
        elif pixel_values is None:
            raise ValueError(f"no image: {FEATURES_INSTEAD}")
        else:
            pixels = pixel_values.to(self.dtype)
            tower = tower_output(self.dual_encoder or self.vision_model, "image", pixel_values=pixels, **options)
        own = None if tower.pooler_output is None else tower.pooler_output.flatten(1)  # of convolutions (.., 1, 1)
        pooled = self.vision_pooling(state_sequence(tower.last_hidden_state), image_mask, own)
        if self.config.mirror_average and not (alone or self.training or pixel_values is None):
            mirrored = self.pool_images(pixel_values.flip(-1), None, image_mask, alone=True, **options)
            pooled = (pooled + mirrored.pooler_output) / 2
        return with_pooled(tower, pooled)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        text_features: Tensor | None = None,
        **options: bool | None,
    ) -> BaseModelOutputWithPooling:
        """Embeds sentences.

        Args:
            input_ids, attention_mask, token_type_ids: (batch, words), as the processor gives them.
            text_features: (batch, hidden), instead of them: what `pool_texts` gave for each sentence.
            options: `output_hidden_states`, `output_attentions` of the tower.

        Returns:
            `pooler_output` (batch, projection_dim), unit vectors; `last_hidden_state` (batch, words, hidden).
        """
        if text_features is None:
            output = self.pool_texts(input_ids, attention_mask, token_type_ids=token_type_ids, **options)
        else:
            output = PrecomputedFeatures()(text_features.to(self.dtype))
        embeds = self.text_head(self.text_projection(self.text_input(output.pooler_output)))
        output.pooler_output = F.normalize(embeds.float(), dim=-1)
        return output

    def pool_texts(
        self, input_ids: Tensor | None, attention_mask: Tensor | None = None, **options: Tensor | bool | None
    ) -> BaseModelOutputWithPooling:
        """States of the text tower and their pooled vector (batch, hidden), which may come back as `text_features`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask} | options
        inputs |= {"output_hidden_states": True} if (layers := self.config.text_layers) > 1 else {}
        tower = tower_output(self.dual_encoder or self.text_model, "text", **inputs)
        states = tower.last_hidden_state if layers == 1 else torch.cat(tower.hidden_states[-layers:], dim=-1)
        return with_pooled(tower, self.text_pooling(states, attention_mask, tower.get("pooler_output")))

    def scaling(self) -> tuple[Tensor, Tensor]:
        """Temperature and bias of the logits, learned or fixed: two scalars in float32."""
        temperature, bias = (torch.tensor(float(each), device=self.device) for each in (self.config.temperature, 0))
        if self.logit_scale is not None:
            temperature = 1 / self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp().squeeze()
        if self.logit_bias is not None:
            bias = self.logit_bias.float().squeeze().clone()  # FSDP frees what a view would still point to
        return temperature, bias

    @torch.no_grad()
    def limit_logit_scale(self) -> None:
        """To be called after every step of an optimizer: a parameter beyond the limit would have no gradient."""
        if self.logit_scale is not None:
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        image_features: Tensor | None = None,
        image_mask: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        text_features: Tensor | None = None,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        return_loss: bool = False,
        return_logits: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VSEOutput:
        """Embeds images, sentences or both, and compares them.

        Args:
            input_ids, attention_mask, token_type_ids: (texts, words).
            pixel_values: (images, channels, height, width); or `image_features` and `image_mask`, see
                `get_image_features`, and there also `pixel_attention_mask` and `spatial_shapes`.
            text_features: (texts, hidden), instead of `input_ids`, see `get_text_features`.
            image_ids: (images,) integers; pairs of one image are no negatives of each other in the loss.
            text_ids: (texts,) integers; pairs of equal caption are no negatives either.
            return_loss: compute `config.loss_type`; row i of the images must belong to row i of the texts.
            return_logits: False leaves out the (images, texts) matrices.
            output_hidden_states, output_attentions: of both towers.
        """
        temperature, bias = self.scaling()
        recorded = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        options = recorded | {"return_dict": True}
        images = texts = image_embeds = text_embeds = logits = loss = None
        if pixel_values is not None or image_features is not None:
            patches = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
            images = self.get_image_features(pixel_values, image_features, image_mask, **patches, **options)
            image_embeds = images.pooler_output
        if input_ids is not None or text_features is not None:
            texts = self.get_text_features(input_ids, attention_mask, token_type_ids, text_features, **options)
            text_embeds = texts.pooler_output
        if return_loss and (image_embeds is None or text_embeds is None):
            raise ValueError(f"return_loss=True needs both sides: give input_ids and {FEATURES_INSTEAD}")
        if image_embeds is not None and text_embeds is not None:
            if return_logits:
                with torch.autocast(bias.device.type, enabled=False):
                    logits = text_embeds @ image_embeds.T / temperature + bias
            if return_loss:
                settings = self.config.objective_settings | {"temperature": temperature, "logit_bias": bias}
                loss = contrastive_loss(image_embeds, text_embeds, image_ids=image_ids, text_ids=text_ids, **settings)
        return VSEOutput(
            loss=loss,
            logits_per_image=None if logits is None else logits.T,
            logits_per_text=logits,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            temperature=temperature,
            logit_bias=bias,
            vision_model_output=images if any(recorded.values()) else None,
            text_model_output=texts if any(recorded.values()) else None,
        )


VSEModel.register_for_auto_class("AutoModel")

__all__ = ["VSEModel", "VSEOutput", "VSEPreTrainedModel"]
