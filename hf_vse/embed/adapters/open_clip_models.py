"""Models of open_clip, whose own transform and tokenizer are used (Cherti et al., arXiv 2212.07143).

A name is `ViT-B-32/laion2b_s34b_b79k`, architecture and published weights; `ViT-B-32@file.safetensors`, the weights of
a file; or `ViT-B-32/laion2b_s34b_b79k@file.safetensors`, a file prepared as those published weights are. It is also a
folder in the format of open_clip, which `hf-vse export --format open_clip` writes.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_vse.data.digests import digest_of, weights_digest
from hf_vse.embed.encoder import Device, NetworkEncoder, Precision
from hf_vse.embed.weights import check_finite, check_installed, chosen_device, chosen_precision, one_line
from hf_vse.files import read_json

PREFIX = "open_clip:"
FOLDER_CONFIG, FOLDER_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OF_PRECISION = {torch.float32: "fp32", torch.bfloat16: "pure_bf16", torch.float16: "pure_fp16"}


class OpenCLIPEncoder(NetworkEncoder):
    """
    Args:
        model, transform, tokenizer: as `open_clip.create_model_and_transforms` and `open_clip.get_tokenizer` give
            them; the transform is that of evaluation.
        name: what to call it.
    """

    model: Any
    kind = "open_clip"
    extra, needs = "openclip", ("open_clip", "torchvision")
    stays = ("model", "weight", "tokenizer")

    def __init__(
        self,
        model: Any,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Any,
        name: str = "unnamed model",
    ):
        self.model = model.eval()
        self.transform = transform
        self.tokenizer = tokenizer
        self.name = name
        self.weight = next(model.parameters())

    @classmethod
    def from_pretrained(
        cls, name: str, device: Device = None, dtype: Precision = None, trust_remote_code: bool = False
    ) -> "OpenCLIPEncoder":
        """See the names above. No code comes with these models: `trust_remote_code` has no effect.

        Raises:
            ImportError: open_clip is not installed.
            ValueError: an unknown architecture or unknown weights.
            OSError: no such file, or weights in another format than safetensors.
        """
        check_installed(cls, name)
        import open_clip

        if (folder := Path(name.removeprefix(PREFIX))).joinpath(FOLDER_CONFIG).is_file():
            return cls.from_folder(folder, device, dtype)
        architecture, published, file = parts_of(name)
        known_as = published_weights(architecture, published)
        if file is None:
            with one_line(name, "without a line, download the file elsewhere and write ARCHITECTURE/WEIGHTS@FILE"):
                file = Path(open_clip.download_pretrained({"hf_hub": known_as["hf_hub"]}))
        if file.suffix != ".safetensors":
            raise OSError(f"{name}: {file.name} may run code when it is read; give its weights as safetensors")
        prepared = {
            f"image_{option}": known_as.get(option) for option in ("mean", "std", "interpolation", "resize_mode")
        }
        with one_line(name, "give weights of this architecture"):
            model, _, transform = open_clip.create_model_and_transforms(
                architecture,
                pretrained=str(file),
                precision=OF_PRECISION[chosen_precision(dtype)],
                device=chosen_device(device),
                force_quick_gelu=known_as.get("quick_gelu", False),
                **prepared,
            )
            tokenizer = open_clip.get_tokenizer(architecture)
        check_finite(name, model)
        return cls(model, transform, tokenizer, f"{PREFIX}{name.removeprefix(PREFIX)}")

    @classmethod
    def from_folder(cls, folder: Path, device: Device, dtype: Precision) -> "OpenCLIPEncoder":
        """A folder with `open_clip_config.json`, `open_clip_model.safetensors` and the files of its tokenizer."""
        import open_clip

        config = read_json(folder / FOLDER_CONFIG)
        if not (folder / FOLDER_WEIGHTS).is_file():
            raise OSError(f"{folder} holds no {FOLDER_WEIGHTS}: other weights are not read, they may run code")
        if "trust_remote_code" in str(config):
            raise ValueError(f"{folder / FOLDER_CONFIG} asks for trust_remote_code: remove it")
        with one_line(str(folder), "give a folder that open_clip or hf-vse export wrote"):
            model, _, transform = open_clip.create_model_and_transforms(
                f"local-dir:{folder}", precision=OF_PRECISION[chosen_precision(dtype)], device=chosen_device(device)
            )
            tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        check_finite(str(folder), model)
        return cls(model, transform, tokenizer, f"{PREFIX}{folder}")

    @cached_property
    def digest(self) -> str:
        """Covers the weights, the network, and the preparation of images and sentences."""
        tokenizer = self.tokenizer
        read = tokenizer(["a photo of 2 Dogs, running; \u00e9t\u00e9"]).tolist()
        return digest_of(weights_digest(self.model), repr(self.model), repr(self.transform), type(tokenizer), read)

    def facts(self) -> dict[str, Any]:
        return {"family": "open_clip", **super().facts(), "max_text_length": self.tokenizer.context_length}

    def prepare_images(self, images: list[Image.Image]) -> Tensor:
        return torch.stack([self.transform(image) for image in images])

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images.to(self.weight.device, self.weight.dtype))

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.weight.device))


def parts_of(name: str) -> tuple[str, str | None, Path | None]:
    """Architecture, published weights and file."""
    model, _, file = name.removeprefix(PREFIX).partition("@")
    architecture, _, published = model.partition("/")
    if not architecture or not (published or file):
        raise ValueError(
            f"{name!r} names no weights; write {PREFIX}ViT-B-32/laion2b_s34b_b79k or {PREFIX}ViT-B-32@file.safetensors"
        )
    if file and not Path(file).is_file():
        raise OSError(f"{name}: there is no file {file}")
    return architecture, published or None, Path(file) if file else None


def published_weights(architecture: str, published: str | None) -> dict[str, Any]:
    """What open_clip knows about published weights: their repository and the preparation of images."""
    import open_clip

    if architecture not in open_clip.list_models():
        raise ValueError(f"open_clip knows no architecture {architecture!r}; see open_clip.list_models()")
    if published is None:
        return {}
    known_as = open_clip.get_pretrained_cfg(architecture, published)
    if not known_as.get("hf_hub"):
        available = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise ValueError(f"open_clip has no weights {published!r} of {architecture} on the Hub; it knows {available}")
    return known_as
