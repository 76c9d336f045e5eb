"""Two towers as two ONNX files, run by onnxruntime: what `scripts/export_onnx.py` writes, or any other pair.

The processor lies beside the files or elsewhere: `folder` or `folder@processor`. A text tower that was
exported for a fixed number of words gets its sentences padded to it.
"""

from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from hf_vse.data.digests import digest_of, image_processor_digest, tokenizer_digest
from hf_vse.data.transforms import needed_side
from hf_vse.embed.adapters.transformers_models import READINGS
from hf_vse.embed.encoder import Device, Encoder, Precision
from hf_vse.embed.sentences import Reading, SentenceReader
from hf_vse.embed.weights import check_installed, one_line
from hf_vse.model.dual_encoder_vse import DUAL_ENCODERS
from hf_vse.model.processing_vse import VSEFeatureProcessor, VSEProcessor

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Image tower and text tower, as exporters call them: ours, Optimum and transformers.js, others.
KNOWN_FILES = (
    ("image_encoder.onnx", "text_encoder.onnx"),
    ("vision_model.onnx", "text_model.onnx"),
    ("visual.onnx", "textual.onnx"),
)
VECTORS = ("embeds", "image_embeds", "text_embeds", "pooler_output")
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}


def onnx_files(folder: Path) -> tuple[Path, Path] | None:
    """Image tower and text tower in a folder or its subfolder `onnx`; None if there are not two that are known."""
    for place in (folder, folder / "onnx"):
        for names in KNOWN_FILES:
            if all((place / name).is_file() for name in names):
                return place / names[0], place / names[1]
    return None


class ONNXEncoder(Encoder):
    """
    Args:
        image_file, text_file: the towers.
        image_processor, tokenizer: those of the model that was exported.
        reading: how its sentences are prepared.
        name: what to call it.
        device: default: CUDA where onnxruntime has it.
    """

    kind = "onnx"
    extra, needs = "onnx", ("onnxruntime",)
    stays = ("image_session", "text_session")
    reads_features = True  # one exported from a model of features; onnxruntime refuses them otherwise

    def __init__(
        self,
        image_file: str | Path,
        text_file: str | Path,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        reading: Reading | None = None,
        name: str = "unnamed model",
        device: Device = None,
    ):
        self.files = Path(image_file), Path(text_file)
        self.name = name
        self.image_session, self.text_session = (open_session(file, device) for file in self.files)
        self.image_processor = image_processor
        length = fixed_length(self.text_session)
        reading = reading or Reading()
        reading = reading if length is None else reading._replace(to_full_length=True)
        self.reader = SentenceReader(tokenizer, reading, length, name)

    @classmethod
    def from_pretrained(
        cls, name: str, device: Device = None, dtype: Precision = None, trust_remote_code: bool = False
    ) -> "ONNXEncoder":
        """From `folder`, which holds the processor too, or `folder@processor`, a folder or Hub id.

        No code comes with these files: `trust_remote_code` has no effect.

        Raises:
            ImportError: onnxruntime is not installed.
            ValueError: a `dtype` is given: the files have one of their own.
            OSError: no such files, or no processor.
        """
        check_installed(cls, name)
        if dtype is not None:
            raise ValueError(
                f"dtype={dtype!r} has no effect on {name}: ONNX files have a precision of their own; leave it out"
            )
        folder, _, processor = (name, "", "") if Path(name).is_dir() else name.partition("@")
        files = onnx_files(Path(folder))
        if files is None:
            pairs = "; ".join(" and ".join(names) for names in KNOWN_FILES)
            raise OSError(f"{folder} does not hold two ONNX files that are known ({pairs}); rename them")
        with one_line(name, "save its processor into the folder, or name that of the model: FOLDER@MODEL"):
            image_processor, tokenizer, reading = processor_parts(processor or folder)
        return cls(*files, image_processor, tokenizer, reading, name, device)

    @property
    def reads_images(self) -> bool:  # type: ignore[override]
        return not isinstance(self.image_processor, VSEFeatureProcessor)

    @property
    def needed_side(self) -> int | None:  # type: ignore[override]
        return needed_side(self.image_processor)

    @cached_property
    def digest(self) -> str:
        """Covers the files and the preparation of images and sentences."""
        digest = blake2b(digest_size=16)
        prepared_by = image_processor_digest(self.image_processor), tokenizer_digest(self.reader.tokenizer)
        digest.update(digest_of(*prepared_by, tuple(self.reader.reading), self.reader.max_length).encode())
        for path in self.files:
            for file in sorted(path.parent.glob(f"{path.name}*")):  # and the weights kept beside a large one
                with open(file, "rb") as opened:
                    while chunk := opened.read(1 << 24):
                        digest.update(chunk)
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        return {
            "family": "onnx",
            "dimensions": self.dim,
            "files": [file.name for file in self.files],
            "runs_on": self.image_session.get_providers()[0],
        } | self.reader.facts()

    def prepare_images(self, images: list[Any]) -> dict[str, np.ndarray]:
        """Pixels, or arrays of features if the data have features instead of images."""
        prepare = self.image_processor if isinstance(images[0], Image.Image) else VSEFeatureProcessor()
        return dict(prepare(images, return_tensors="np"))

    def encode_images(self, images: Mapping[str, np.ndarray]) -> np.ndarray:
        return run(self.image_session, images, self.files[0])

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        inputs = {name: tensor.numpy() for name, tensor in self.reader(texts).items()}
        inputs.setdefault("attention_mask", np.ones_like(inputs["input_ids"]))
        inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])  # one sentence each
        return run(self.text_session, inputs, self.files[1])


def processor_parts(name: str) -> tuple[BaseImageProcessor, PreTrainedTokenizerBase, Reading]:
    """Image processor, tokenizer and, where the model's configuration lies beside them, how it reads sentences."""
    trust = {"trust_remote_code": False}  # without a question at the terminal
    try:
        model_type = AutoConfig.from_pretrained(name, **trust).model_type
    except (OSError, ValueError):
        model_type = None
    if model_type in DUAL_ENCODERS:
        image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", **trust)
        return image_processor, AutoTokenizer.from_pretrained(name, **trust), READINGS.get(model_type, Reading())
    processor = VSEProcessor.from_pretrained(name, **trust)
    reading = Reading(to_full_length=processor.full_length, mask=processor.text_mask, lower=processor.lower_case)
    return processor.image_processor, processor.tokenizer, reading


def open_session(file: Path, device: Device) -> "InferenceSession":
    import onnxruntime

    asked = None if device is None else torch.device(device)
    wanted = None if asked is None else asked.type
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if wanted == "cuda" and not has_cuda:
        raise ValueError("device='cuda' needs onnxruntime-gpu; pip install it in place of onnxruntime, or take 'cpu'")
    providers: list = ["CPUExecutionProvider"]
    if has_cuda and wanted != "cpu":
        number = 0 if asked is None else asked.index or 0
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    with one_line(str(file), "export it again"):
        return onnxruntime.InferenceSession(file, providers=providers)


def fixed_length(session: "InferenceSession") -> int | None:
    """The fixed number of tokens of the text tower; None if it is dynamic."""
    shapes = {each.name: each.shape for each in session.get_inputs()}
    length = shapes["input_ids"][1] if len(shapes.get("input_ids", ())) == 2 else None
    return length if isinstance(length, int) else None


def run(session: "InferenceSession", inputs: Mapping[str, np.ndarray], file: Path) -> np.ndarray:
    """Runs a tower with those of `inputs` that it takes: (batch, dim)."""
    asked = {each.name: NUMPY_TYPES.get(each.type, np.int64) for each in session.get_inputs()}
    if unknown := asked.keys() - inputs.keys():
        raise ValueError(
            f"{file.name} asks for {', '.join(sorted(unknown))}, the processor gives {', '.join(sorted(inputs))}; "
            "export it with the inputs of the processor"
        )
    outputs = [each.name for each in session.get_outputs()]
    vectors = next((name for name in VECTORS if name in outputs), outputs[0] if len(outputs) == 1 else None)
    if vectors is None:
        raise ValueError(f"{file.name} gives {', '.join(outputs)}; call the vectors of the common space `embeds`")
    return session.run([vectors], {name: inputs[name].astype(dtype) for name, dtype in asked.items()})[0]
