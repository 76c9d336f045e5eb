"""A saved model in a process that has never heard of hf_vse."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import torch
from safetensors.numpy import load_file
from transformers import CLIPImageProcessorPil

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor

STRANGER = """
import sys
sys.modules["hf_vse"] = None  # importing it fails from here on
import numpy as np, PIL.Image
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

pixels, features, output = sys.argv[1:]
embeds = {}
for name, folder in (("pixels", pixels), ("features", features)):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "vse"
    assert len(AutoTokenizer.from_pretrained(folder, trust_remote_code=True)) == len(processor.tokenizer)
    AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    ramp = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    images = [PIL.Image.fromarray(ramp)] if name == "pixels" else [np.linspace(-1, 1, 10)]
    outputs = model(**processor(images=images, text=["a red circle", "blue"]))
    embeds |= {f"{name}.image": outputs.image_embeds.detach().numpy(),
               f"{name}.text": outputs.text_embeds.detach().numpy()}
save_file(embeds, output)
assert "hf_vse.model" not in sys.modules
"""


def test_saved_model_loads_without_the_package_and_embeds_the_same_to_the_last_bit(tokenizer, tiny_resnet, tmp_path):
    text = {"model_type": "vse_gru_text", "vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    processors = {
        "pixels": VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=32), tokenizer),
        "features": VSEProcessor(tokenizer=tokenizer),
    }
    visions = {"pixels": tiny_resnet, "features": {"model_type": "vse_features", "hidden_size": 10}}
    options = {"projection_dim": 16, "projection_type": "mlp", "text_pooling": "gpo", "loss_type": "siglip"}
    expected = {}
    ramp = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    images = {"pixels": [PIL.Image.fromarray(ramp)], "features": [np.linspace(-1, 1, 10)]}
    for name, processor in processors.items():
        model = VSEModel(VSEConfig(vision_config=visions[name], text_config=text, **options)).eval()
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        outputs = model(**processor(images=images[name], text=["a red circle", "blue"]))
        expected |= {f"{name}.image": outputs.image_embeds, f"{name}.text": outputs.text_embeds}
    output = tmp_path / "embeds.safetensors"
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "pixels"), str(tmp_path / "features"), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(output)
    assert found.keys() == expected.keys()
    for name, embeds in expected.items():
        assert torch.equal(torch.from_numpy(found[name]), embeds.detach()), name


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
