"""The files of a model, in a folder or in a repository on the Hub: their paths and contents.

Nothing here runs code or unpickles. A file that cannot be read causes a one-line error that names it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import logging as transformers_logging
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from hf_vse.files import inside, read_json

SAFETENSORS_ONLY = (
    "only safetensors are read, other formats may run code: where you trust the file, load it yourself and call "
    "save_pretrained"
)


class StoredTensor(NamedTuple):
    """A tensor in the header of a file; `dtype` as safetensors writes it, such as F32 or BF16."""

    dtype: str
    shape: tuple[int, ...]


def check_name(name: Any) -> None:
    """Checks that a folder exists, or that the name is a valid Hub id.

    Raises:
        OSError: it is neither.
    """
    if not isinstance(name, str | Path) or not str(name).strip() or "\0" in str(name):
        raise OSError(f"{name!r} names no model: give a folder or a Hub id such as org/name")
    try:
        if Path(name).is_dir():
            return
        if Path(name).exists():
            raise OSError(f"{name} is a file: give the folder of the model, or a Hub id")
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"{str(name)[:80]} names no model ({error.strerror}): give a folder or a Hub id") from error
    try:
        validate_repo_id(str(name))
    except HFValidationError as error:
        raise OSError(f"{name} does not exist, and cannot be a Hub id: give a folder or a Hub id") from error


def stored_file(name: str, file: str) -> Path | None:
    """The path of a file in a folder or in a repository on the Hub, downloaded if necessary; None if it does not
    exist."""
    if Path(name).is_dir():
        path = Path(name, file)
        return path if path.is_file() else None
    try:
        path = cached_file(name, file)
    except (OSError, ValueError):  # no such file or repository, no access to it, no connection, or no name for one
        return None
    return None if path is None else Path(path)


def stored_json(name: str, file: str, kind: type | None = None) -> Any:
    """The contents of a JSON file of a folder or of a repository on the Hub; None if there is none."""
    path = stored_file(name, file)
    return None if path is None else read_json(path, kind)


def stored_config(name: str) -> tuple[Path, dict[str, Any]]:
    """Path and contents of `config.json`.

    Raises:
        OSError: there is no such model, or it has no `config.json`.
        ValueError: it is not a JSON object.
    """
    check_name(name)
    path = stored_file(name, CONFIG_NAME)
    if path is None and Path(name).is_dir():
        raise OSError(f"{name} holds no {CONFIG_NAME}: give the folder of a model")
    if path is None:
        raise OSError(
            f"{name} is not a folder, and nothing of that name was found on the Hub: give a folder, or check the "
            "Hub id and the connection"
        )
    return path, read_json(path, dict)


def stored_tensors(name: str) -> dict[str, StoredTensor]:
    """The tensors of a model, from the headers of its safetensors files.

    Raises:
        OSError: there are none.
        ValueError: one is damaged, or the index names what is not there.
    """
    whole = stored_file(name, SAFE_WEIGHTS_NAME)
    if whole is not None:
        return read_tensor_header(whole)
    index = stored_file(name, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        others = [each for each in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if stored_file(name, each) is not None]
        remedy = f"{others[0]} is not read: {SAFETENSORS_ONLY}" if others else "give the folder of a whole model"
        raise OSError(f"{name} holds no {SAFE_WEIGHTS_NAME}: {remedy}")
    shards = read_json(index, dict).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index} has no weight_map: fetch or save the model again")
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(map(str, shards.values()))):
        inside(index.parent, shard, f"{index}, weight_map")
        path = stored_file(name, shard)
        if path is None:
            raise OSError(f"{index} names {shard}, which is not there: fetch or save the model again")
        found |= read_tensor_header(path)
    return found


def read_tensor_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file. Its size is compared with its header.

    Raises:
        ValueError: it is cut short or no safetensors file.
    """
    try:
        with safe_open(path, framework="np") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}
            return {key: StoredTensor(part.get_dtype(), tuple(part.get_shape())) for key, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}): fetch or save it again") from error


@contextmanager
def without_remarks() -> Iterator[None]:
    """Silences transformers while it loads a model whose weights are checked afterwards."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
