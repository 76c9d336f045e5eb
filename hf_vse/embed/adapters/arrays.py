"""Embeddings that were computed elsewhere, and which text belongs to which image.

Either one safetensors file or a folder of .npy files, which are not read into memory, with

| name            | shape           | meaning                                                |
|-----------------|-----------------|--------------------------------------------------------|
| `image_embeds`  | `(images, dim)` | one vector for each image, of any length and precision |
| `text_embeds`   | `(texts, dim)`  | one for each text                                      |
| `text_to_image` | `(texts,)`      | the row of `image_embeds` that each text describes     |
| `image_ids`     | `(images,)`     | may be left out                                        |
| `caption_ids`   | `(texts,)`      | may be left out                                        |

and the captions, which may be left out too: in a folder as `captions.json` (a list of strings) or `captions.txt` (one
a line), in a file as a JSON list under `captions` of its metadata. In a folder each of the last three may also be a
JSON list. That text j describes image j // 5 is never assumed.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_vse.data.features import mapped_array
from hf_vse.files import parse_json, read_text, whole_file, write_json

VECTORS = ("image_embeds", "text_embeds")
OWNER = "text_to_image"
NUMBERS = (OWNER, "image_ids", "caption_ids")
COUNTED_BY = dict.fromkeys((OWNER, "caption_ids", "captions"), "text_embeds") | {"image_ids": "image_embeds"}
ROWS_AT_ONCE = 4096


class GivenEmbeddings(NamedTuple):
    """The vectors as they were given, of any length and precision, in memory or memory-mapped."""

    image_embeds: np.ndarray | Tensor
    text_embeds: np.ndarray | Tensor
    text_to_image: Tensor  # (texts,) int64
    image_ids: list[int] | None = None
    caption_ids: list[int] | None = None
    captions: list[str] | None = None


def read_embeddings(path: str | Path) -> GivenEmbeddings:
    """Reads and checks a safetensors file or a folder of arrays.

    Raises:
        OSError: there is no such file or folder, or it cannot be read.
        ValueError: something is missing, of a wrong shape or type, out of range or not a number.
    """
    path = Path(path)
    if not path.exists():
        raise OSError(f"{path} does not exist; give a .safetensors file, or a folder of .npy files")
    parts = folder_parts(path) if path.is_dir() else file_parts(path)
    for name in (*VECTORS, OWNER):
        if name not in parts:
            raise ValueError(f"{path} holds no {name}; {missing_remedy(name)}")
    vectors = {name: checked_vectors(path, name, parts[name]) for name in VECTORS}
    if vectors["image_embeds"].shape[1] != vectors["text_embeds"].shape[1]:
        raise ValueError(
            f"{path}: image_embeds have {vectors['image_embeds'].shape[1]} dimensions and text_embeds "
            f"{vectors['text_embeds'].shape[1]}; both come from one space"
        )
    numbers = {name: checked_numbers(path, name, parts[name]) for name in NUMBERS if name in parts}
    rest = {"captions": checked_captions(path, parts["captions"])} if "captions" in parts else {}
    for name, column in (numbers | rest).items():
        if len(column) != len(vectors[COUNTED_BY[name]]):
            expected = f"{len(vectors[COUNTED_BY[name]])} rows of {COUNTED_BY[name]}"
            raise ValueError(f"{path}: {name} has {len(column)} entries for {expected}; give one for each")
    check_owner(path, numbers[OWNER], len(vectors["image_embeds"]))
    owner = torch.from_numpy(numbers.pop(OWNER))
    known: dict[str, Any] = {name: ids.tolist() for name, ids in numbers.items()} | rest
    return GivenEmbeddings(vectors["image_embeds"], vectors["text_embeds"], owner, **known)


def missing_remedy(name: str) -> str:
    if name == OWNER:
        return "say which row of image_embeds each text describes, it is not assumed to be j // 5"
    return f"save one vector for each {name.removesuffix('_embeds')}"


def folder_parts(folder: Path) -> dict[str, Any]:
    """What lies in a folder, vectors memory-mapped."""
    parts: dict[str, Any] = {}
    for name in (*VECTORS, *NUMBERS):
        if (file := folder / f"{name}.npy").is_file():
            parts[name] = mapped_array(file)
    for name in (*NUMBERS, "captions"):
        if name not in parts and (file := folder / f"{name}.json").is_file():
            parts[name] = as_list(file, read_text(file))
    if "captions" not in parts and (lines := folder / "captions.txt").is_file():
        text = read_text(lines).removesuffix("\n")  # an empty line is an empty caption
        parts["captions"] = [line.removesuffix("\r") for line in text.split("\n")]
    return parts


def file_parts(file: Path) -> dict[str, Any]:
    try:
        with safe_open(file, framework="pt") as stored:
            parts = {name: stored.get_tensor(name) for name in stored.keys() if name in (*VECTORS, *NUMBERS)}
            captions = (stored.metadata() or {}).get("captions")
    except SafetensorError as error:
        raise OSError(f"{file} is not a safetensors file; for another format save .npy files in a folder") from error
    return parts if captions is None else parts | {"captions": as_list(file, captions)}


def as_list(file: Path, text: str) -> list[Any]:
    value = parse_json(text, file)
    if not isinstance(value, list):
        raise ValueError(f"{file} holds a {type(value).__name__}; write a list, one entry for each row")
    return value


def checked_vectors(path: Path, name: str, vectors: np.ndarray | Tensor) -> np.ndarray | Tensor:
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"{path}: {name} has shape {tuple(vectors.shape)}; it must be a matrix (items, dim)")
    floating = vectors.is_floating_point() if isinstance(vectors, Tensor) else vectors.dtype.kind == "f"
    if not floating:
        raise ValueError(f"{path}: {name} holds {vectors.dtype}; save the vectors as floating point numbers")
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        chunk = as_copy(vectors[start : start + ROWS_AT_ONCE])
        good = chunk.isfinite().all(dim=1) & (chunk != 0).any(dim=1)
        if not good.all():
            row = start + int((~good).nonzero()[0])
            raise ValueError(f"{path}: {name} row {row} is zero or not a finite number; leave the item out")
    return vectors


def checked_numbers(path: Path, name: str, values: Any) -> np.ndarray:
    try:
        numbers = values.numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (ValueError, OverflowError) as error:  # lists of several lengths
        raise ValueError(f"{path}: {name} must be a list of whole numbers, one for each row") from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: {name} is {numbers.dtype} of shape {numbers.shape}; it must be a list of whole numbers"
        )
    return numbers.astype(np.int64)


def checked_captions(path: Path, captions: list[Any]) -> list[str]:
    for place, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"{path}: entry {place} of the captions is not text but {type(caption).__name__}")
    return captions


def check_owner(path: Path, owner: np.ndarray, images: int) -> None:
    outside = np.flatnonzero((owner < 0) | (owner >= images))
    if len(outside):
        raise ValueError(
            f"{path}: text_to_image[{outside[0]}] is {owner[outside[0]]}; it must lie in 0 .. {images - 1}, the rows "
            "of image_embeds, and not be an id"
        )


def as_copy(values: Any) -> Tensor:
    """A tensor on the CPU; of a memory-mapped array, which torch must not write to, a copy."""
    return values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def save_embeddings(path: str | Path, embeddings: GivenEmbeddings) -> None:
    """Writes what `read_embeddings` reads: one file if `path` ends in .safetensors, else a folder of .npy files."""
    path = Path(path)
    given = {name: value for name, value in embeddings._asdict().items() if value is not None}
    captions = given.pop("captions", None)
    tensors = {name: as_copy(value).contiguous() for name, value in given.items()}
    if path.suffix == ".safetensors":
        with whole_file(path) as unfinished:
            save_file(tensors, unfinished, None if captions is None else {"captions": json.dumps(captions)})
        return
    path.mkdir(parents=True, exist_ok=True)
    for name, tensor in tensors.items():
        known = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy has no bfloat16
        with whole_file(path / f"{name}.npy") as unfinished:
            np.save(unfinished, known.numpy(), allow_pickle=False)
    if captions is not None:
        write_json(path / "captions.json", captions)
