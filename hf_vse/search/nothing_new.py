"""Whether a folder of images is indexed already, told without opening the model.

A gallery records a digest of its model, which takes the model to compute. Beside it stands a digest of all that the
first follows from: every byte of the model's files, the code that reads them, the precision. Where this one is the
same, the other would be too. That holds for models of this package in a folder, which are made of nothing else.
"""

import os
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hf_vse
from hf_vse.files import read_json, write_text
from hf_vse.search.gallery import GalleryIndex, recipe_of
from hf_vse.search.gallery_images import Listed
from hf_vse.search.header import HEADER_FILE, checksum_of, file_checksum, read_header, to_json
from hf_vse.search.storage import locked, remove_leftovers

OWN_KIND = "vse"  # of the encoder
READING = ("model", "data", "embed")  # rooms of the package that read a model and compute its digest
LIBRARIES = ("torch", "transformers", "tokenizers", "timm", "safetensors", "numpy")
FIELD = "model_files"
WEIGHTS, ADAPTER, TOKENIZER_CONFIG = "model.safetensors", "adapter_config.json", "tokenizer_config.json"
NOT_READ = {"special_tokens_map_file"}
# Numbers of processes, as accelerate reads them.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def files_of(model: str) -> list[Path]:
    """The files of a model: those in its folder, without what lies in folders there, which is not read."""
    return sorted(path for path in Path(model).iterdir() if path.is_file())


def is_self_contained(model: str) -> bool:
    """Whether these files are all that a model is made of: the weights are one file, nothing in them is the adapter of
    another model, and the tokenizer names no file elsewhere."""
    names = {path.name for path in files_of(model)}
    tokenizer = read_json(Path(model, TOKENIZER_CONFIG), dict) if TOKENIZER_CONFIG in names else {}
    named = {name for name, value in tokenizer.items() if name.endswith("_file") and value is not None}
    return WEIGHTS in names and ADAPTER not in names and named <= NOT_READ


def states_of(model: str) -> list[tuple[Any, ...]] | None:
    """What the system says of the files, which any write to one changes; None of what is no folder."""
    try:
        found = [(path.name, path.stat()) for path in files_of(model)]
    except (OSError, ValueError):
        return None
    return [(name, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for name, each in found]


@cache
def reading_digest() -> str:
    """Of the code between the files and the digest of a model: this package's, and versions of libraries."""
    digest, package = blake2b(digest_size=16), Path(hf_vse.__file__).parent
    for path in sorted(path for room in READING for path in (package / room).rglob("*.py")):
        digest.update(f"{path.relative_to(package)} {file_checksum(path)}\n".encode())
    for name in LIBRARIES:
        try:
            digest.update(f"{name} {version(name)}\n".encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()


def digest_of_files(model: str, dtype: str) -> str:
    """All bytes of the files are read."""
    digest = blake2b(f"{reading_digest()} {dtype}".encode(), digest_size=16)
    for path in files_of(model):
        digest.update(f"{path.name} {file_checksum(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def made_by_files(folder: Path, model: str, dtype: str | None) -> dict[str, Any] | None:
    """The header of the gallery in a folder, if the files of the model, opened so, made it; otherwise None."""
    try:
        header = read_header(folder)
        opened = header.get("encoder") or {}
        told = (opened.get("kind"), opened.get("dtype"), opened.get("place"))
        one_process = all(os.environ.get(name, "1") == "1" for name in WORLD_SIZES)
        if one_process and told == (OWN_KIND, dtype or "float32", str(Path(model).absolute())) and header.get(FIELD):
            return header if digest_of_files(model, opened["dtype"]) == header[FIELD] else None
    except (OSError, ValueError):  # the model that is opened then, or the gallery that is written, says what is wrong
        return None
    return None


def is_indexed(
    folder: Path, header: dict[str, Any], listed: Listed, source: str, model: str, kind: str, recall: float
) -> bool:
    """Whether the gallery in a folder, whole and verified, is what `build_gallery` would make of the images.

    Args:
        header: from `made_by_files`; model: as it was named there.
        listed: what `of_folder` found in `source`.
        kind, recall: see `build_gallery`.
    """
    images, facts = listed
    facts = facts | {"root": str(Path(source).absolute()), "origin": None, "broken": [], "model": model}
    facts |= {name: header[name] for name in ("digest", "encoder")}
    recipe = recipe_of([each.key for each in images], [each.item for each in images], facts, kind, recall, [])
    with locked(folder):
        if GalleryIndex.unchanged(folder, recipe) is None:
            return False
        remove_leftovers(folder)
    return True


def remember_files(folder: Path, model: str, before: list[tuple[Any, ...]] | None) -> None:
    """Records the files of the model that made the gallery in a folder.

    Args:
        before: `states_of` them before the model was opened; where a file was written to since, nothing is recorded.
    """
    header = read_json(folder / HEADER_FILE, dict)
    opened = header.get("encoder") or {}
    if before is None or opened.get("kind") != OWN_KIND:
        return
    try:
        if not is_self_contained(model):
            return
        found = digest_of_files(model, opened["dtype"])
    except OSError:  # a file that the model does not need cannot be read
        return
    if states_of(model) == before and header.get(FIELD) != found:
        header[FIELD] = found
        header["checksum"] = checksum_of(header)
        write_text(folder / HEADER_FILE, to_json(header, indent=1))
