"""What is in the directory of a saved model. Where it can be loaded, see `test_ecosystem.py`."""

import json

from torch.distributed.fsdp import FSDPModule

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor


def test_saved_directory_holds_safetensors_and_no_pickle(tokenizer, tmp_path):
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    vision = {"model_type": "vse_features", "hidden_size": 10}
    VSEModel(VSEConfig(vision_config=vision, text_config=text, projection_dim=16)).save_pretrained(tmp_path)
    VSEProcessor(tokenizer=tokenizer).save_pretrained(tmp_path)
    endings = {path.suffix for path in tmp_path.iterdir()}
    assert endings == {".json", ".py", ".safetensors"}
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_vse.VSEConfig",
        "AutoModel": "modeling_vse.VSEModel",
        "AutoModelForZeroShotImageClassification": "modeling_vse.VSEModel",
    }


def test_model_whose_class_was_made_by_fsdp_is_saved_under_its_own(tmp_path):
    text = {"vocab_size": 20, "word_dim": 8, "hidden_size": 16}
    vision = {"model_type": "vse_features", "hidden_size": 10}
    model = VSEModel(VSEConfig(vision_config=vision, text_config=text, projection_dim=16))
    model.save_pretrained(tmp_path / "plain")
    model.__class__ = type("FSDPVSEModel", (FSDPModule, VSEModel), {})
    model.save_pretrained(tmp_path / "sharded")
    assert type(model).__name__ == "FSDPVSEModel"
    files = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("plain", "sharded")
    }
    assert files["sharded"] == files["plain"] and "modeling_vse.py" in files["plain"]
