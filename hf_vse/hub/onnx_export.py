"""The two towers as two ONNX files, for runtimes without PyTorch.

`image_encoder.onnx` and `text_encoder.onnx` give the unit vectors of the model as `embeds`; their inputs are named as
the processor names them. Batches may be of any size, sentences of any length, unless the processor pads all to one;
photographs have the size to which the processor crops. What is written is run by onnxruntime on several sizes and
compared with the model.
"""

import logging
import warnings
from copy import deepcopy
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torch.export import Dim

from hf_vse.embed.sentences import positions_of
from hf_vse.files import check_output_folder, write_json
from hf_vse.model.configuration_vse import FEATURES_MODEL_TYPE
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor

RECORD_FILE = "onnx.json"
OPSET = 18
LARGEST_DIFFERENCE = 1e-4
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SIZES = ((1, 1), (2, 7), (5, 16))  # batch, words or regions; what is compared
EXAMPLE_SIZE = (3, 5)  # what is traced: neither is one, which would be taken for a constant


class OnnxGRU(nn.Module):
    """One layer of `torch.nn.GRU` in one direction, batch first, as the ONNX operator of that name.

    torch.export would write the recurrence out as a loop, for which some versions take the number of words as fixed.
    """

    weight_of_inputs: Tensor
    weight_of_states: Tensor
    bias: Tensor

    def __init__(self, gru: nn.GRU):
        super().__init__()
        self.hidden = gru.hidden_size
        # ONNX has the gates in the order z, r, n, PyTorch in the order r, z, n.
        of_inputs, of_states, *biases = (_gates_reordered(weight) for weight in gru.all_weights[0])
        self.register_buffer("weight_of_inputs", of_inputs[None])
        self.register_buffer("weight_of_states", of_states[None])
        self.register_buffer("bias", torch.cat(biases)[None])

    def forward(self, words: Tensor) -> tuple[Tensor]:
        """(batch, words, inputs) -> states (batch, words, hidden), and no more."""
        batch, length, _ = words.shape
        states = torch.onnx.ops.symbolic(
            "GRU",
            (words.transpose(0, 1), self.weight_of_inputs, self.weight_of_states, self.bias),
            {"hidden_size": self.hidden, "linear_before_reset": 1},
            dtype=words.dtype,
            shape=(length, 1, batch, self.hidden),
        )
        return (states.squeeze(1).transpose(0, 1),)


def _gates_reordered(weight: Tensor) -> Tensor:
    reset, update, new = weight.detach().chunk(3)
    return torch.cat([update, reset, new])


class ExportedTower(nn.Module):
    """One side of the model as a function of tensors in a given order, which is what can be exported."""

    def __init__(self, model: VSEModel, method: str, names: list[str]):
        super().__init__()
        self.model = model
        self.method = method
        self.names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        return getattr(self.model, self.method)(**dict(zip(self.names, tensors, strict=True))).pooler_output


def with_onnx_recurrence(model: VSEModel) -> VSEModel:
    """A copy with the recurrences of ONNX: it can be exported, but not run."""
    copy = deepcopy(model)
    for path, module in list(copy.named_modules()):
        if isinstance(module, nn.GRU):
            copy.set_submodule(path, OnnxGRU(module))
    return copy


def text_inputs(model: VSEModel, processor: VSEProcessor, batch: int, words: int) -> dict[str, Tensor]:
    """Random sentences of up to `words` words, padded on the right, under the names of the processor."""
    longest = positions_of(model.config.text_config) or words
    words = processor.tokenizer.model_max_length if processor.full_length else min(words, longest)
    lengths = torch.randint(1, words + 1, (batch,))
    lengths[0] = words
    mask = (torch.arange(words)[None, :] < lengths[:, None]).long()
    ids = torch.randint(model.config.text_config.vocab_size, (batch, words))
    known = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: known[name] for name in processor(text="any")}


def image_inputs(
    model: VSEModel, processor: VSEProcessor, batch: int, regions: int, by_region: bool
) -> dict[str, Tensor]:
    """Random photographs or features, under the names of the processor."""
    vision = model.config.vision_config
    if vision.model_type != FEATURES_MODEL_TYPE:
        grey = PIL.Image.fromarray(np.full((64, 64, 3), 127, dtype=np.uint8))
        shape = processor(images=[grey])["pixel_values"].shape[1:]
        return {"pixel_values": torch.randn(batch, *shape)}
    if not by_region:
        return {"image_features": torch.randn(batch, vision.hidden_size)}
    counts = torch.randint(1, regions + 1, (batch,))
    counts[0] = regions
    mask = (torch.arange(regions)[None, :] < counts[:, None]).long()
    return {"image_features": torch.randn(batch, regions, vision.hidden_size) * mask[:, :, None], "image_mask": mask}


def free_axes(name: str, tensor: Tensor, positions: Any) -> dict[int, Any]:
    """The axes of an input whose size is not fixed: the batch, and the words or regions."""
    several = (
        positions is not None
        and tensor.ndim > 1
        and name != "pixel_values"
        and not (name == "image_features" and tensor.ndim == 2)
    )
    return {0: Dim("batch")} | ({1: positions} if several else {})


def write_tower(tower: ExportedTower, inputs: dict[str, Tensor], positions: Any, path: Path) -> None:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of operators of torchvision, which is not needed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*axis name")  # one name for an axis of several inputs is right
            torch.onnx.export(
                tower,
                tuple(inputs.values()),
                path,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                external_data=False,
                input_names=list(inputs),
                output_names=["embeds"],
                dynamic_shapes=(tuple(free_axes(name, tensor, positions) for name, tensor in inputs.items()),),
            )
    finally:
        log.setLevel(level)


@torch.no_grad()
def difference(path: Path, tower: ExportedTower, batches: list[dict[str, Tensor]]) -> float:
    """The largest difference of any number between the file in onnxruntime and PyTorch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for inputs in batches:
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        differences.append(np.abs(found - tower(*inputs.values()).numpy()).max())
    return float(np.max(differences))


def export_onnx(
    model: VSEModel, processor: VSEProcessor, folder: str | Path, *, check: bool = True, by_region: bool = False
) -> dict[str, Any]:
    """Writes `image_encoder.onnx`, `text_encoder.onnx`, the record `onnx.json`, and the processor beside them.

    Args:
        model: any `VSEModel`, on any device; it is not changed.
        check: compare with the model in onnxruntime.
        by_region: features of a model of precomputed features are (batch, regions, dim) with an `image_mask`, and not
            (batch, dim).

    Returns:
        The record: opset, versions, for both files their inputs, and the largest difference of any number of a unit
        vector (None without the check).

    Raises:
        ImportError: the extra `onnx` is not installed.
        ValueError: a file gives other vectors than the model, by more than 1e-4.
    """
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise ImportError(f"the export needs {', '.join(missing)}: pip install 'hf_vse[onnx]'")
    folder = check_export_folder(folder)
    model = deepcopy(model).float().cpu()
    exported = with_onnx_recurrence(model)
    batches = {
        "image": [image_inputs(model, processor, *size, by_region) for size in (EXAMPLE_SIZE, *SIZES)],
        "text": [text_inputs(model, processor, *size) for size in (EXAMPLE_SIZE, *SIZES)],
    }
    positions = {"image": Dim("regions"), "text": word_axis(model, processor)}
    record = {"opset": OPSET, "versions": {name: version(name) for name in ("torch", "transformers", *PACKAGES)}}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}") as unfinished:
        for side, (example, *others) in batches.items():
            path, method = Path(unfinished, f"{side}_encoder.onnx"), f"get_{side}_features"
            write_tower(ExportedTower(exported, method, list(example)).eval(), example, positions[side], path)
            found = difference(path, ExportedTower(model, method, list(example)).eval(), others) if check else None
            if found is not None and not found <= LARGEST_DIFFERENCE:
                versions = "export with other versions of torch"
                raise ValueError(f"{path.name} differs from the model by {found:.1e}; {versions}")
            record[side] = {"file": path.name, "inputs": list(example), "largest_difference": found}
        processor.save_pretrained(unfinished)
        write_json(Path(unfinished, RECORD_FILE), record)
        folder.mkdir(exist_ok=True)
        for path in sorted(Path(unfinished).iterdir(), key=lambda path: path.name == RECORD_FILE):  # the record last
            path.replace(folder / path.name)
    return record


def export_text_tower(model: VSEModel, processor: VSEProcessor, path: Path) -> None:
    """Writes the text tower alone; the caller compares it with the model."""
    model = deepcopy(model).float().cpu().eval()
    example = text_inputs(model, processor, *EXAMPLE_SIZE)
    tower = ExportedTower(with_onnx_recurrence(model), "get_text_features", list(example)).eval()
    write_tower(tower, example, word_axis(model, processor), path)


def word_axis(model: VSEModel, processor: VSEProcessor) -> Any:
    """The number of words of a sentence; None where it is fixed."""
    longest = positions_of(model.config.text_config)
    return None if processor.full_length else Dim("words", max=longest) if longest else Dim("words")


def check_export_folder(folder: str | Path) -> Path:
    """The folder, if no other files would be overwritten; checked before the work.

    Raises:
        OSError: it is a file, or cannot be written.
        ValueError: it holds other files than those of an export.
    """
    folder = check_output_folder("folder", folder)
    holds = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if holds and RECORD_FILE not in holds:
        raise ValueError(f"folder {folder} holds other files ({holds[0]}, ...): give a new or an empty one for ONNX")
    return folder
