"""The model as a module of sentence-transformers: `SentenceTransformer(folder, trust_remote_code=True)`.

A saved model carries a list of modules that names the class below. sentence-transformers needs only a few methods of a
module, so it is not imported here, and nobody needs it to load the model with transformers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.image_utils import is_valid_image


def without_name(value: Any) -> Any:
    """The sentence of {"text": sentence}, the image of {"image": image}; everything else as it is."""
    kind, content = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else (None, None)
    return content if kind == ("text" if isinstance(content, str) else "image") else value


class VSESentenceModule(nn.Module):
    """Sentences and photographs, also mixed in one call, to the unit vectors of `VSEModel`.

    Example:
        model = SentenceTransformer("org/vse-hardnce", trust_remote_code=True)
        embeds = model.encode(["a small red circle", PIL.Image.open("photo.jpg")])
        model.similarity(embeds[:1], embeds[1:])
    """

    save_in_root = True

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        super().__init__()
        self.model = model
        self.processor = processor

    @property
    def modalities(self) -> list[str]:
        """What may be encoded, in the words of sentence-transformers; `message` stands for a mixture in one call."""
        reads_pixels = "pixel_values" in self.processor.image_processor.model_input_names
        return ["text", "image", "message"] if reads_pixels else ["text"]

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @tokenizer.setter
    def tokenizer(self, value) -> None:
        self.processor.tokenizer = value

    @property
    def max_seq_length(self) -> int:
        """Words of a sentence that are read; what is longer is cut."""
        return self.tokenizer.model_max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.tokenizer.model_max_length = value

    def get_embedding_dimension(self) -> int:
        return self.model.config.projection_dim

    get_sentence_embedding_dimension = get_embedding_dimension  # its name before sentence-transformers 5.4

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Sentences, images (PIL or arrays), {"text": sentence} and {"image": image} to the inputs of `forward`.

        A string is a sentence, also one that names a file. A prompt is put before every sentence.

        Raises:
            ValueError: something that is neither.
        """
        inputs = [without_name(value) for value in inputs]
        texts = [place for place, value in enumerate(inputs) if isinstance(value, str)]
        images = [place for place, value in enumerate(inputs) if is_valid_image(value)]
        if len(texts) + len(images) < len(inputs):
            strange = next(value for value in inputs if not isinstance(value, str) and not is_valid_image(value))
            raise ValueError(f"encode takes sentences and images, got {type(strange).__name__}; give str or PIL.Image")
        features: dict[str, Tensor] = {"places": torch.tensor(texts + images)}
        if texts:
            features |= self.processor(text=[(prompt or "") + inputs[place] for place in texts])
        if images:
            features |= self.processor(images=[inputs[place] for place in images])
        return features

    tokenize = preprocess  # its name before sentence-transformers 5.4

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Adds `sentence_embedding` (inputs, projection_dim) in the order of the inputs."""
        given = {name: value for name, value in features.items() if name != "places"}
        outputs = self.model(**given, return_logits=False)
        embeds = [each for each in (outputs.text_embeds, outputs.image_embeds) if each is not None]
        features["sentence_embedding"] = torch.cat(embeds)[features["places"].argsort()]
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """The model and its processor, as their own `save_pretrained` write them."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        cache_folder: str | None = None,
        backend: str = "torch",
        **options: Any,
    ) -> "VSESentenceModule":
        """Called by sentence-transformers with the place of the model and its own arguments.

        Raises:
            ValueError: another backend, or weights that are missing, which transformers would draw, or too many.
        """
        if backend != "torch":
            raise ValueError(f"backend must be 'torch', got {backend!r}; export_onnx writes the towers as ONNX files")
        names = ("revision", "token", "local_files_only", "trust_remote_code")
        where = {name: options[name] for name in names if name in options} | {"cache_dir": cache_folder}
        processor_kwargs = processor_kwargs or options.get("tokenizer_kwargs") or {}
        model, found = AutoModel.from_pretrained(
            model_name_or_path, output_loading_info=True, **where, **(model_kwargs or {})
        )
        for kind in ("missing", "unexpected"):
            if names := found[f"{kind}_keys"]:
                raise ValueError(
                    f"{model_name_or_path}: {kind} weights, such as {min(names)!r}, would give wrong vectors; fetch "
                    "or save the model again"
                )
        return cls(model, AutoProcessor.from_pretrained(model_name_or_path, **where, **processor_kwargs))


MODULE_TYPE = "sentence_transformers_vse.VSESentenceModule"
SENTENCE_FILES = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": MODULE_TYPE}],
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}


def write_sentence_files(folder: str | Path, reads_pixels: bool) -> None:
    """What sentence-transformers, and MTEB for its kinds of inputs, read first, next to a saved model."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    output = {"method_output_name": "pooler_output"}
    kinds = {kind: {"method": f"get_{kind}_features"} | output for kind in ("text", "image")[: 1 + reads_pixels]}
    for name, content in (SENTENCE_FILES | {"sentence_bert_config.json": {"modality_config": kinds}}).items():
        Path(folder, name).write_text(json.dumps(content, indent=2), encoding="utf-8")
