"""Models of sentence-transformers that embed photographs and sentences (Reimers and Gurevych, arXiv 1908.10084)."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from hf_vse.data.digests import (
    configuration_digest,
    digest_of,
    image_processor_digest,
    tokenizer_digest,
    weights_digest,
)  # fmt: skip
from hf_vse.embed.encoder import Device, NetworkEncoder, Precision
from hf_vse.embed.sentences import positions_of
from hf_vse.embed.stored import without_remarks
from hf_vse.embed.weights import check_finite, check_found, check_installed, chosen_device, chosen_precision, one_line
from hf_vse.files import inside, read_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Weights that have to be unpickled, and copies of the model for other libraries.
NOT_READ = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.onnx*", "openvino/*"]


class SentenceTransformersEncoder(NetworkEncoder):
    """
    Args:
        model: one whose `encode` takes PIL images as well as strings.
        name: what to call it.

    Raises:
        ValueError: the model reads no images.
    """

    model: "SentenceTransformer"
    kind = "sentence_transformers"
    extra, needs = "sentence", ("sentence_transformers",)

    def __init__(self, model: "SentenceTransformer", name: str = "unnamed model"):
        if "image" not in model.modalities:
            raise ValueError(
                f"{name} encodes {', '.join(map(str, model.modalities))} but no images; give a CLIP model"
            )
        # The library cuts at the length in the outer configuration, which CLIP names in that of its text tower alone.
        positions = [positions_of(inner.config.get_text_config()) for inner in inner_models(model)]
        longest = min((each for each in (*positions, model.max_seq_length) if each), default=None)
        if longest != model.max_seq_length:
            model.max_seq_length = longest
        for module in model.modules():  # a tokenizer saved after use would cut at the length of that use
            if longest is not None and (options := getattr(module, "processing_kwargs", None)) is not None:
                options["text"] = (options.get("text") or {}) | {"max_length": longest}
        self.model = model.eval()
        self.name = name

    @classmethod
    def from_pretrained(
        cls, name: str, device: Device = None, dtype: Precision = None, trust_remote_code: bool = False
    ) -> "SentenceTransformersEncoder":
        """From a folder or a Hub id; see `TransformersEncoder.from_pretrained`."""
        check_installed(cls, name)
        from sentence_transformers import SentenceTransformer

        folder = local_folder(name)
        refuse_pickles(name, folder)
        weights = {"torch_dtype": chosen_precision(dtype), "use_safetensors": True}
        weights["ignore_mismatched_sizes"] = True  # `check_found` reports all of them
        with one_line(name, "every module needs its weights as model.safetensors"), without_remarks():
            model = SentenceTransformer(
                str(folder),
                device=str(chosen_device(device)),
                trust_remote_code=trust_remote_code,
                model_kwargs=weights,
            )
        check_parts(name, model, folder)
        return cls(model, name)

    @cached_property
    def digest(self) -> str:
        """Covers the weights, the modules and their configuration, and the preparation of images and sentences."""
        inner = [vars(module) for module in self.model.modules()]
        parts = [part for module in inner for part in module.values()]
        parts += [part for each in parts if isinstance(each, ProcessorMixin) for part in vars(each).values()]
        return digest_of(
            weights_digest(self.model),
            repr(self.model),
            (self.model.max_seq_length, self.model.truncate_dim, self.model.prompts, self.model.default_prompt_name),
            [configuration_digest(part) for part in parts if isinstance(part, PreTrainedConfig)],
            [image_processor_digest(part) for part in parts if isinstance(part, BaseImageProcessor)],
            [tokenizer_digest(part) for part in parts if isinstance(part, PreTrainedTokenizerBase)],
        )

    def facts(self) -> dict[str, Any]:
        return {"family": "sentence-transformers", **super().facts(), "max_text_length": self.model.max_seq_length}

    def encode_images(self, images: list[Image.Image]) -> Tensor:
        return self.encode([{"image": image} for image in images])

    def encode_texts(self, texts: list[str]) -> Tensor:
        return self.encode([{"text": text} for text in texts])  # a bare "dog.jpg" would be opened

    def encode(self, inputs: list[dict[str, Any]]) -> Tensor:
        return self.model.encode(inputs, batch_size=len(inputs), convert_to_tensor=True, show_progress_bar=False)


def local_folder(name: str) -> Path:
    with one_line(name, "give a folder or a Hub id"):
        return Path(name if Path(name).is_dir() else snapshot_download(name, ignore_patterns=NOT_READ))


def wrapped_model(name: str) -> str:
    """The folder of the model that the first module wraps."""
    folder = local_folder(name)
    modules = read_json(folder / "modules.json", list)
    path = str(modules[0].get("path", "")) if modules and isinstance(modules[0], dict) else ""
    return str(inside(folder, path, f"{folder / 'modules.json'}, path") if path else folder)


def inner_models(model: Iterable[nn.Module]) -> list[PreTrainedModel]:
    """The models of transformers in its modules."""
    return [part for module in model for part in module.children() if isinstance(part, PreTrainedModel)]


def check_parts(name: str, model: "SentenceTransformer", folder: Path) -> None:
    """Raises ValueError if an inner model lacks weights, which transformers would initialise at random."""
    check_finite(name, model)
    listed = zip(model, read_json(folder / "modules.json", list), strict=True)
    for inner, place in (
        (inner, folder / entry["path"]) for module, entry in listed for inner in inner_models([module])
    ):
        with one_line(name, "every module needs its weights as model.safetensors"), without_remarks():
            _, found = type(inner).from_pretrained(
                place,
                config=inner.config,
                device_map="meta",
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        check_found(name, inner, found)


def refuse_pickles(name: str, folder: Path) -> None:
    """Raises ValueError for a module without safetensors, because its pickle would be loaded."""
    for path in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(path.parent.glob("*.safetensors")):
            raise ValueError(
                f"{name}: {path.relative_to(folder)} may run code when it is read; save the module as safetensors"
            )
