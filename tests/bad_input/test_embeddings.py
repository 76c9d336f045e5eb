"""Embeddings that are kept, those that somebody gives, a recipe beside a model, devices, and places for features."""

from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from hf_vse.data.digests import item_key
from hf_vse.data.features import feature_column
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.sources import load_pairs
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.store import ROWS
from hf_vse.evaluation.evaluator import kept_vectors
from tests.bad_input.table import Case, Parts, one_clear_line
from tests.bad_input.test_model import copied, evaluate, features

IMAGES, TEXTS, DIM = 10, 10, 16  # photographs with metadata, their captions, dimensions of the model


@cache
def encoder_of(parts: Parts) -> VSEEncoder:
    return VSEEncoder.from_pretrained(parts.model, "cpu")


def unit_rows(count: int, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def kept(change: Callable[[bytes], bytes] | None, dim: int = DIM):
    """A shard lies where the vectors of images are kept: its first two are of the images that are judged."""

    def arrange(parts: Parts, folder: Path) -> list[str]:
        store, _ = kept_vectors(encoder_of(parts), folder / "kept")
        images = undecoded_images(load_pairs("imagefolder", data_dir=parts.photographs)["train"])
        keys = [item_key(images[row]["image"]) for row in range(2)]
        store.write(keys, {ROWS: feature_column(unit_rows(2, dim))})
        [path] = store.folder.glob("*.arrow")
        if change is not None:
            path.write_bytes(change(path.read_bytes()))
        return [*evaluate(parts, folder, parts.model), "--embeddings", str(folder / "kept"), "--device", "cpu"]

    return arrange


def as_npy(rows: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, rows, allow_pickle=True)
    return file.getvalue()


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-100],
    "empty": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 20,
    "pickled": lambda content: as_npy(np.array([{"an": "object"}] * IMAGES)),
    "another kind": lambda content: as_npy(unit_rows(IMAGES)),
    "one bit": lambda content: content[:400] + bytes([content[400] ^ 1]) + content[401:],
    "longer": lambda content: content + b"\0",
}


def given(change: Callable[[dict, Path], object], as_folder: bool = False):
    """Embeddings of five texts and three images, one thing of them wrong."""

    def arrange(parts: Parts, folder: Path) -> list[str]:
        tensors = {
            "image_embeds": torch.from_numpy(unit_rows(3)),
            "text_embeds": torch.from_numpy(unit_rows(5)),
            "text_to_image": torch.tensor([0, 0, 1, 2, 2]),
        }
        place = folder / ("given" if as_folder else "given.safetensors")
        if as_folder:
            place.mkdir()
            for name, tensor in tensors.items():
                np.save(place / f"{name}.npy", tensor.numpy())
            change(tensors, place)
        else:
            if (content := change(tensors, place)) is not None:
                place.write_bytes(content)
            else:
                save_file(tensors, place)
        return ["evaluate", str(place), "--output", str(folder / "metrics.json"), "--quiet"]

    return arrange


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]):
    return lambda tensors, place: tensors.update({name: change(tensors[name])})


def without(name: str):
    return lambda tensors, place: tensors.__delitem__(name)


def with_value(place: tuple[int, int], value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.index_put(tuple(torch.tensor([each]) for each in place), torch.tensor(value))


GIVEN: dict[str, tuple[Callable, str]] = {
    "whole numbers": (changed("image_embeds", lambda tensor: tensor.long()), "image_embeds holds"),
    "one vector": (changed("text_embeds", lambda tensor: tensor[0]), "text_embeds has shape"),
    "none": (changed("image_embeds", lambda tensor: tensor[:0]), "image_embeds has shape"),
    "another space": (changed("text_embeds", lambda tensor: tensor[:, :7].clone()), "16 dimensions and text_embeds 7"),
    "not a number": (changed("text_embeds", with_value((3, 2), float("nan"))), "text_embeds row 3 is zero or not"),
    "infinite": (changed("image_embeds", with_value((1, 2), float("inf"))), "image_embeds row 1 is zero or not"),
    "zero": (changed("image_embeds", lambda tensor: tensor * 0), "image_embeds row 0 is zero or not"),
    "fractions": (changed("text_to_image", lambda tensor: tensor / 2), "text_to_image is float32"),
    "too few": (changed("text_to_image", lambda tensor: tensor[:3].clone()), "text_to_image has 3 entries"),
    "out of range": (changed("text_to_image", lambda tensor: tensor + 1), r"text_to_image\[3\] is 3"),
    "negative": (changed("text_to_image", lambda tensor: tensor - 1), r"text_to_image\[0\] is -1"),
    "without owners": (without("text_to_image"), "holds no text_to_image"),
    "without texts": (without("text_embeds"), "holds no text_embeds"),
    "garbage": (lambda tensors, place: bytes(range(256)) * 4, "given.safetensors is no"),
    "empty": (lambda tensors, place: b"", "given.safetensors is no"),
}
IN_FOLDER: dict[str, tuple[Callable, str]] = {
    "truncated": (lambda tensors, place: cut(place / "image_embeds.npy"), "image_embeds.npy is no"),
    "empty": (lambda tensors, place: (place / "text_embeds.npy").write_bytes(b""), "text_embeds.npy is no"),
    "pickled": (
        lambda tensors, place: np.save(place / "text_embeds.npy", np.array([{}] * 5), allow_pickle=True),
        "text_embeds.npy is no",
    ),
    "an archive": (
        lambda tensors, place: np.savez((place / "text_embeds.npy").open("wb"), rows=unit_rows(5)),
        "text_embeds.npy is no",
    ),
    "captions of no JSON": (lambda tensors, place: (place / "captions.json").write_text("<html>"), "captions.json"),
    "captions an object": (lambda tensors, place: (place / "captions.json").write_text("{}"), "captions.json"),
    "captions of numbers": (lambda tensors, place: (place / "captions.json").write_text("[1,2,3,4,5]"), "not text"),
    "captions in latin-1": (
        lambda tensors, place: (place / "captions.txt").write_bytes(b"caf\xe9\n" * 5), "is not valid UTF-8"
    ),
    "too few captions": (lambda tensors, place: (place / "captions.txt").write_text("one\n"), "captions has 1 entr"),
    "ids nested": (lambda tensors, place: (place / "image_ids.json").write_text("[[1], [2, 3]]"), "image_ids"),
}  # fmt: skip


def a_file(folder: Path, name: str) -> str:
    (folder / name).write_text("of somebody")
    return str(folder / name)


def places(command: Callable, option: str, make: Callable[[Path], str]):
    return lambda parts, folder: [*command(parts, folder, parts.model), option, make(folder)]


def foreign_folder(folder: Path) -> str:
    (folder / "mine").mkdir()
    (folder / "mine" / "letter.txt").write_text("of somebody")
    return str(folder / "mine")


PLACES = {
    "embeddings a file": (evaluate, "--embeddings", lambda folder: a_file(folder, "f"), "embeddings .* is a file"),
    "embeddings under a file": (
        evaluate, "--embeddings", lambda folder: a_file(folder, "f") + "/x", "embeddings .* is below .* a file"
    ),
    "embeddings without a name": (evaluate, "--embeddings", lambda folder: "\0", "embeddings .* is not a valid file"),
    "features a file": (features, "--output", lambda folder: a_file(folder, "f"), "--output .* is a file"),
    "features under a file": (
        features, "--output", lambda folder: a_file(folder, "f") + "/x", "--output .* is below .* a file"
    ),
    "features in a folder of somebody": (features, "--output", foreign_folder, "holds other things than features"),
}  # fmt: skip
DEVICES = {
    "gpu": "'gpu' is not a device",
    "cuda:x": "'cuda:x' is not a device",
    "cpu:-2": "is not a device",
    "cuda:77": "is not on this machine",
    "meta": "is not on this machine",
    "xla": "is not on this machine|is not a device",
}
RECIPES = {
    "garbage": ("a: [1, 2", "recipe.yaml is not valid YAML"),
    "a list": ("- 1\n- 2\n", "recipe.yaml holds list"),
    "text": ("only words", "recipe.yaml holds str"),
    "empty": ("", "recipe.yaml holds NoneType"),
    "data set a list": ("dataset: [scenes]", "recipe.yaml: dataset is"),
    "folder an object": ("dataset: imagefolder\ndata_dir: {a: 1}", "recipe.yaml: data_dir is"),
    "python": ("!!python/object/apply:os.system ['false']", "recipe.yaml is not valid YAML"),
    "seed text": ("dataset: scenes\nseed: many", "recipe.yaml: seed is 'many'"),
    "seed negative": ("dataset: scenes\nseed: -1", "recipe.yaml: seed is -1"),
    "share text": ("dataset: scenes\nvalidation_share: some", "recipe.yaml: validation_share is 'some'"),
    "share above one": ("dataset: scenes\nvalidation_share: 1.5", "recipe.yaml: validation_share is 1.5"),
    "share not a number": ("dataset: scenes\nvalidation_share: .nan", "recipe.yaml: validation_share is nan"),
}


def with_recipe(text: str):
    def arrange(parts: Parts, folder: Path) -> list[str]:
        model = copied(parts, folder)
        (model / "recipe.yaml").write_text(text)
        return ["evaluate", str(model), "--split", "validation", "--output", str(folder / "metrics.json"), "--quiet"]

    return arrange


def on_device(name: str):
    return lambda parts, folder: [*evaluate(parts, folder, parts.model), "--device", name]


CASES = [
    *(Case(f"kept/{what}", kept(change), accepted=True) for what, change in DAMAGED.items()),  # computed again
    Case("kept/of another length", kept(None, DIM + 1), "rows of shapes .* remove the folder", may_write=("kept",)),
    *(Case(f"given/{what}", given(change), says) for what, (change, says) in GIVEN.items()),
    *(Case(f"given/folder {what}", given(change, True), says) for what, (change, says) in IN_FOLDER.items()),
    *(Case(f"place/{what}", places(*how), says) for what, (*how, says) in PLACES.items()),
    *(Case(f"device/{name}", on_device(name), says) for name, says in DEVICES.items()),
    *(Case(f"recipe beside a model/{what}", with_recipe(text), says) for what, (text, says) in RECIPES.items()),
]

test_one_clear_line = one_clear_line(CASES)
