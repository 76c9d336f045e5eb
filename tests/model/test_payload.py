"""What is in the directory of a saved model. Where it can be loaded, see `test_ecosystem.py`."""

import ast
import json
from pathlib import Path

import pytest
from torch.distributed.fsdp import FSDPModule

from hf_vse import model
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor

PAYLOAD = sorted(Path(model.__file__).parent.glob("*_vse.py"))
LONGEST = 1650  # lines in all, which whoever trusts remote code has to read
# Ways to other files, programs and machines. Models and processors are loaded and saved by transformers.
FORBIDDEN = {"os", "sys", "io", "subprocess", "shutil", "socket", "urllib", "http", "tempfile", "ctypes", "importlib"}
BUILTINS = {"open", "eval", "exec", "compile", "__import__"}
METHODS = {"open", "read_text", "read_bytes", "unlink", "rename", "glob", "iterdir"}


def test_the_payload_is_short():
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in PAYLOAD) <= LONGEST


@pytest.mark.parametrize("path", PAYLOAD, ids=lambda path: path.name)
def test_the_payload_only_computes(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not FORBIDDEN & {name.split(".")[0] for name in names}, names
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in BUILTINS), node.func.id
            assert not (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS), node.func.attr


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
