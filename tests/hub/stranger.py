"""Loads a published model in a process that cannot import hf_vse, and publishes it once more from there."""

import sys

sys.modules["hf_vse"] = None  # importing it fails from here on

import PIL.Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModel, AutoProcessor  # noqa: E402

model = AutoModel.from_pretrained("org/pushed", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("org/pushed", trust_remote_code=True)
outputs = model(**processor(images=[PIL.Image.new("RGB", (40, 50), "red")], text=["a red circle", "blue"]))
save_file({"image": outputs.image_embeds, "text": outputs.text_embeds}, sys.argv[1])
model.push_to_hub("org/again", tags=["further"])
processor.push_to_hub("org/again")
assert "hf_vse.model" not in sys.modules
