"""A published model as two functions: sentences or images in, unit vectors out.

It is loaded with AutoModel and AutoProcessor, so CLIP-like models of transformers work too. For other models,
`hf-vse demo` passes the page an object with the same methods.
"""

import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import numpy as np
import PIL.Image
import torch
from relevance import Relevance, relevance, why_no_cells
from settings import SettingsError
from transformers import AutoModel, AutoProcessor


def in_one_thread(method: Callable) -> Callable:
    """Runs a method in the encoder's own thread, without gradients; the caller waits for the result."""

    @functools.wraps(method)
    def wait_for_it(self, *args):
        return self._thread.submit(torch.inference_mode()(method), self, *args).result()

    return wait_for_it


HOW_TO_LOAD = """from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
outputs = model(**processor(images=photos, text=["a dog runs on the beach", "two children laugh"]))
outputs.logits_per_text.argmax(dim=1)  # the best photo for each sentence"""


class PublishedModel:
    """A thread-safe encoder.

    Args:
        name: Hub id or directory of the model.
        variable: the setting that holds the name, for error messages.
    """

    how_to_load = HOW_TO_LOAD
    has_temperature = True  # needed to turn scores into label probabilities

    def __init__(self, name: str, variable: str = "VSE_MODEL"):
        self.name = name
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.model = AutoModel.from_pretrained(name, trust_remote_code=True).eval().to(self.device)
            self.processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        except Exception as error:  # OSError, ValueError, ImportError; code of a model can raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SettingsError(
                f"{variable}={name!r} cannot be loaded ({reason}); give the Hub id of a model, or a directory with "
                "its config.json, weights and processor files"
            ) from error
        self.config = self.model.config
        if getattr(getattr(self.config, "vision_config", None), "model_type", None) == "vse_features":
            raise SettingsError(f"{variable}={name!r} takes precomputed features; give a model that takes photographs")
        # Fast tokenizers must not be used by two threads at once, and one call at a time keeps all cores busy. Always
        # use the same thread, because every thread that runs a model keeps memory: a ResNet-18 in gradio's threads
        # used 1.5 GB and kept growing; in its own thread it used 0.9 GB.
        self._thread = ThreadPoolExecutor(1, "model")

    @property
    def shows_where(self) -> bool:
        """Whether `relevance` applies."""
        return why_no_cells(self.model) is None

    @in_one_thread
    def relevance(self, image: PIL.Image.Image, sentence: str) -> Relevance:
        """Which cells of an image speak for a sentence."""
        return relevance(self, image, sentence)

    def digest(self) -> str:
        """Digest of weights, configuration and processor."""
        digest = blake2b(digest_size=12)
        config = self.config.to_dict() | {"_name_or_path": ""}
        settings = [config, self.processor.image_processor.to_dict(), len(self.processor.tokenizer)]
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.cpu().float().numpy()).data)
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """Facts about the model for the page."""
        return {
            "image_tower": _tower(self.config, "vision_config"),
            "text_tower": _tower(self.config, "text_config"),
            "parameters": sum(each.numel() for each in self.model.parameters()),
            "loss": getattr(self.config, "loss_type", None),
            "temperature": getattr(self.config, "temperature", None),
        }

    @in_one_thread
    def encode_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Unit vectors (sentences, dim), float32."""
        return _unit_vectors(self.model.get_text_features(**self._process(text=list(sentences))))

    @in_one_thread
    def encode_images(self, images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Unit vectors (images, dim), float32."""
        return _unit_vectors(self.model.get_image_features(**self._process(images=list(images))))

    def encode_rows(self, rows: Sequence[int], images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Unit vectors (images, dim) of photographs of the data set, whose rows are given."""
        return self.encode_images(images)

    @in_one_thread
    def judge_labels(self, image: PIL.Image.Image, prompts: Sequence[str]) -> np.ndarray:
        """Probabilities (prompts,) that sum to one, with the model's own temperature."""
        outputs = self.model(**self._process(images=[image], text=list(prompts)))
        return outputs.logits_per_image[0].float().softmax(-1).cpu().numpy()

    @in_one_thread
    def unknown_words(self, sentence: str) -> list[str]:
        """Words of the sentence that are unknown to the tokenizer."""
        return words_unknown_to(self.processor.tokenizer, sentence)

    def _process(self, **inputs) -> dict[str, torch.Tensor]:
        if "text" in inputs:
            inputs |= {"padding": True, "truncation": True}
        tensors = self.processor(**inputs, return_tensors="pt").to(self.device)
        if "pixel_values" in tensors:  # the layout in which convolutions are fastest
            tensors["pixel_values"] = tensors["pixel_values"].contiguous(memory_format=torch.channels_last)
        return tensors


def words_unknown_to(tokenizer: Any, sentence: str) -> list[str]:
    """Words of the sentence that are unknown to a tokenizer."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        return []
    words = list(dict.fromkeys(filter(None, (word.strip(".,;:!?\"'()") for word in sentence.split()))))
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]


def _tower(config: Any, name: str) -> str:
    tower = getattr(config, name, None)
    return str(getattr(tower, "architecture", None) or getattr(tower, "model_type", "unknown"))


def _unit_vectors(output) -> np.ndarray:
    embeds = getattr(output, "pooler_output", output)
    return torch.nn.functional.normalize(embeds.float(), dim=-1).cpu().numpy()
