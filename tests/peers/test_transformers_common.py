"""The model in the common model tests of transformers: two transformers, a ResNet with a GRU, and a whole CLIP.

What a test of theirs asks for and a model of two towers does not have is skipped below, with the reason.
"""

import json
import unittest

import torch

from hf_vse.model.configuration_vse import VSEConfig, VSEFeaturesConfig, VSEGRUTextConfig
from hf_vse.model.modeling_vse import VSEModel
from tests.peers.transformers_source import common_tests

modeling = common_tests("test_modeling_common")
configuration = common_tests("test_configuration_common")

WORDS = 40
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = LAYERS | {"image_size": 32, "patch_size": 8}
TEXT = LAYERS | {"vocab_size": WORDS, "max_position_embeddings": 16}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BOTH = {"projection_dim": 16, "vision_config": VISION, "text_config": TEXT | SPECIAL}
RESNET = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}


class TinyModel:
    """What the common tests ask: a configuration, and inputs for it."""

    is_training = True
    batch_size, seq_length = 4, 7
    num_hidden_layers = LAYERS["num_hidden_layers"]

    def __init__(self, fields: dict):
        self.fields = fields

    def get_config(self) -> VSEConfig:
        return VSEConfig(**self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[VSEConfig, dict[str, torch.Tensor]]:
        inputs = {
            "input_ids": modeling.ids_tensor([self.batch_size, self.seq_length], WORDS),
            "attention_mask": torch.ones(self.batch_size, self.seq_length, dtype=torch.long),
            "pixel_values": modeling.floats_tensor([self.batch_size, 3, VISION["image_size"], VISION["image_size"]]),
        }
        return self.get_config(), inputs


def skipped(reason: str):
    """A test of theirs that says nothing about this model."""
    return unittest.skip(reason)(lambda self: None)


class Common(modeling.ModelTesterMixin):
    fields: dict
    all_model_classes = (VSEModel,)
    _is_composite = True
    additional_model_inputs = ["input_ids"]
    test_can_init_all_missing_weights_before_2023 = True  # only says that this model does not come before it

    def setUp(self):
        self.model_tester = TinyModel(self.fields)
        written = json.loads(VSEConfig(**self.fields).to_json_string())
        fields = {name: written[name] for name in self.fields}
        self.config_tester = configuration.ConfigTester(self, VSEConfig, has_text_modality=False, **fields)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return inputs | {"return_loss": True} if return_labels else inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_reverse_loading_mapping(self):
        super().test_reverse_loading_mapping(
            check_keys_were_modified=False
        )  # old names of towers, read but not written

    # They want the first argument, input_ids; checkpointing would then ask for gradients of frozen word embeddings.
    test_model_main_input_name = skipped("the main input is pixel_values, though input_ids comes first")
    in_outputs_of_towers = skipped(
        "states are in vision_model_output and text_model_output, not in the model's output"
    )
    test_hidden_states_output = test_attention_outputs = in_outputs_of_towers
    test_retain_grad_hidden_states_attentions = in_outputs_of_towers


class TestTransformers(Common, unittest.TestCase):
    fields = {
        "vision_config": {"model_type": "vit", **VISION},
        "text_config": {"model_type": "bert", **TEXT},
        "vision_pooling": "pooler",
        "text_pooling": "pooler",
        "projection_dim": 16,
        "projection_type": "mlp",
        "loss_type": "siglip",
    }


class TestRecurrent(Common, unittest.TestCase):
    fields = {
        "vision_config": {"model_type": "resnet", **RESNET},
        "text_config": {"model_type": "vse_gru_text", "vocab_size": WORDS, "word_dim": 8, "hidden_size": 16},
        "projection_dim": 16,
        "loss_type": "siglip",
    }
    has_attentions = False
    skip_test_image_features_output_shape = True  # it looks for a size that a ResNet's configuration does not have

    test_get_text_features_hidden_states = skipped("a GRU keeps the states of its last layer only")
    no_checkpointing = skipped("neither a ResNet nor a GRU has gradient checkpointing; switching it on is an error")
    test_gradient_checkpointing_backward_compatibility = no_checkpointing
    test_gradient_checkpointing_enable_disable = test_peft_gradient_checkpointing_enable_disable = no_checkpointing
    test_enable_input_require_grads_with_gradient_checkpointing = no_checkpointing
    test_training_gradient_checkpointing = no_checkpointing
    test_training_gradient_checkpointing_use_reentrant_false = no_checkpointing
    test_training_gradient_checkpointing_use_reentrant_true = no_checkpointing


class TestDualEncoder(Common, unittest.TestCase):
    fields = {
        "dual_encoder_config": {"model_type": "clip", **BOTH},
        "projection_dim": 16,
        "projection_type": "residual",
        "loss_type": "siglip",
    }

    def _text_features_prepare_config_and_inputs(self):
        config, inputs = super()._text_features_prepare_config_and_inputs()
        config.sub_configs = (
            VSEConfig.sub_configs
        )  # the tests change fields one level deep, and CLIP's towers lie two deep
        return config, inputs

    # CLIPModel alone does not initialize its logit_scale, which is not used here. In models that are not its own,
    # transformers skips modules without parameters of their own when it draws weights that a folder lacks (loading
    # refuses such a folder), so that layers of CLIP get its general deviation. A fresh model equals a fresh CLIPModel.
    of_fresh_weights = skipped("CLIP leaves its logit_scale, and transformers layers of CLIP in models not its own")
    test_init_weights_can_init_buffers = test_can_init_all_missing_weights = of_fresh_weights


class TestTowerConfigurations(unittest.TestCase):
    def test_words(self):
        fields = {"word_dim": 8, "hidden_size": 16, "vocab_size": WORDS}
        configuration.ConfigTester(self, VSEGRUTextConfig, True, ["hidden_size"], **fields).run_common_tests()

    def test_features(self):
        configuration.ConfigTester(self, VSEFeaturesConfig, False, ["hidden_size"], hidden_size=7).run_common_tests()
