"""The two towers: where an image or a sentence becomes states `(batch, positions, hidden)`.

Towers are told apart by `config.model_type`, never by class: a published model is loaded from its own files, in which
the same class exists a second time. Towers are built from their configuration alone; the model loads their weights.
"""

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_vse import FEATURES_MODEL_TYPE, GRU_MODEL_TYPE, VSEGRUTextConfig
from .pooling_vse import last_pool, reverse_valid


class PrecomputedFeatures(nn.Module):
    """Stands in for an image tower whose outputs are the model's input."""

    def forward(self, features: Tensor) -> BaseModelOutputWithPooling:
        """(batch, dim) or (batch, regions, dim) -> states (batch, regions, dim); a single vector is pooled already."""
        if features.ndim == 2:
            return BaseModelOutputWithPooling(last_hidden_state=features[:, None, :], pooler_output=features)
        return BaseModelOutputWithPooling(last_hidden_state=features)


class GRUTextTower(nn.Module):
    """Word embedding and gated recurrent unit; sentences are padded on the right.

    A recurrence that reads from left to right meets the padding after the last word, so nothing has to be packed. The
    backward direction reads every sentence turned round within its own length.
    """

    def __init__(self, config: VSEGRUTextConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.word_dim)
        self.dropout = nn.Dropout(config.dropout)
        sizes = [config.word_dim] + [config.hidden_size] * config.num_layers
        self.forward_layers = nn.ModuleList(_recurrent_layers(sizes))
        self.backward_layers = nn.ModuleList(_recurrent_layers(sizes) if config.bidirectional else [])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_) -> BaseModelOutputWithPooling:
        """(batch, words) ids and mask -> states (batch, words, hidden) and final state (batch, hidden)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = mask.sum(dim=1)
        states = self.dropout(self.embedding(input_ids))
        final = states[:, 0]
        for layer, ahead in enumerate(self.forward_layers):
            words = states
            ids = input_ids if layer == 0 else None
            states = self.read(ahead, words, ids, lengths)
            final = last_pool(states, mask)
            if self.backward_layers:
                mirrored_ids = None if ids is None else reverse_valid(ids[:, :, None], lengths)[:, :, 0]
                mirrored = self.read(self.backward_layers[layer], reverse_valid(words, lengths), mirrored_ids, lengths)
                final = (final + last_pool(mirrored, mask)) / 2
                states = (states + reverse_valid(mirrored, lengths)) / 2
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=final)

    def read(self, layer: nn.Module, words: Tensor, ids: Tensor | None, lengths: Tensor) -> Tensor:
        """One layer in one direction: (batch, words, inputs) -> (batch, words, hidden).

        Where `words` are word vectors, `ids` says of which: hf_vse then computes equal beginnings once.
        """
        return layer(words)[0]


def _recurrent_layers(sizes: list[int]) -> list[nn.GRU]:
    return [nn.GRU(inputs, outputs, batch_first=True) for inputs, outputs in zip(sizes, sizes[1:], strict=False)]


def build_tower(config: PreTrainedConfig) -> nn.Module:
    if config.model_type == FEATURES_MODEL_TYPE:
        return PrecomputedFeatures()
    if config.model_type == GRU_MODEL_TYPE:
        return GRUTextTower(config)
    return AutoModel.from_config(config, trust_remote_code=False)  # no question whether to run code of a tower


def vision_hidden_size(config: PreTrainedConfig, tower: PreTrainedModel) -> int:
    """The size of an image tower's states, read from its configuration or, for timm, from the model.

    Raises:
        ValueError: the configuration does not tell; set `vision_hidden_size` of `VSEConfig`.
    """
    if config.model_type == "timm_wrapper":
        return tower.timm_model.num_features
    values = config.to_dict()
    for size in (values.get("hidden_size"), *values.get("hidden_sizes", [])[-1:], values.get("embed_dim")):
        if isinstance(size, int):
            return size
    raise ValueError(
        f"the configuration of the image tower {config.model_type!r} does not tell the size of its states; "
        "set vision_hidden_size in the VSEConfig"
    )


def state_sequence(states: Tensor) -> Tensor:
    """Feature maps (batch, channels, height, width) as (batch, height * width, channels); sequences as they are."""
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
