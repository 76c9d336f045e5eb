"""What interrupted runs have encoded: files of vectors with their keys, each whole or absent.

INDEX/parts/DIGEST/PART.safetensors    vectors by the encoder of that digest; in its header keys and a checksum
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hf_vse.data.features import read_array
from hf_vse.files import parse_json, whole_file

logger = logging.getLogger(__name__)

PARTS_FOLDER = "parts"
# One that is not finished begins with a dot; earlier versions kept the keys in a file of their own.
PART_FILE = re.compile(r"\.?[0-9a-f]{16}(\.\d+)?\.(safetensors|json|new)")
DIGEST_FOLDER = re.compile(r"[0-9a-f]{32}")


@dataclass
class Vectors:
    """Vectors that are there already: `embeds[rows[key]]`."""

    embeds: np.ndarray
    rows: dict[str, int]

    @classmethod
    def with_keys(cls, path: Path, keys: object, dim: int) -> "Vectors":
        """Those of a file.

        Raises:
            ValueError: keys and vectors do not belong together.
        """
        embeds = read_array(path, "embeds")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError(f"the keys of {path} are no list of text")
        if embeds.shape != (len(keys), dim):
            raise ValueError(f"{path} has vectors {embeds.shape}, not {(len(keys), dim)}")
        return cls(embeds, {key: row for row, key in enumerate(keys)})


def folder_of(folder: Path, digest: str) -> Path:
    """Where the parts by an encoder of that digest are."""
    return folder / PARTS_FOLDER / blake2b(digest.encode(), digest_size=16).hexdigest()


def write_part(folder: Path, digest: str, embeds: np.ndarray, keys: Sequence[str]) -> None:
    name = blake2b(json.dumps(keys).encode(), digest_size=8).hexdigest()
    facts = {"keys": json.dumps(keys), "checksum": checksum(embeds)}
    with whole_file(folder_of(folder, digest) / f"{name}.safetensors") as path:
        save_file({"embeds": embeds}, path, metadata=facts)


def read_parts(folder: Path, digest: str, dim: int) -> Iterator[Vectors]:
    """Those by one encoder; what is damaged is as good as absent."""
    for path in sorted(folder_of(folder, digest).glob("[!.]*.safetensors")):
        try:
            yield read_part(path, dim)
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("%s of an interrupted run is not used (%s): its images are encoded anew", path, error)


def read_part(path: Path, dim: int) -> Vectors:
    with safe_open(path, framework="np") as file:
        facts = file.metadata() or {}
    part = Vectors.with_keys(path, parse_json(facts.get("keys", "null"), f"the keys of {path}"), dim)
    if checksum(part.embeds) != facts.get("checksum"):
        raise ValueError("its checksum differs")
    return part


def checksum(embeds: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(embeds).data).hexdigest()


def remove_parts(folder: Path) -> None:
    """All parts, by whichever encoder; may be repeated wherever it was interrupted."""
    parts = folder / PARTS_FOLDER
    for of_encoder in sorted(parts.glob("*")):
        if not DIGEST_FOLDER.fullmatch(of_encoder.name) or of_encoder.is_symlink():
            continue
        for path in sorted(of_encoder.glob("*")):
            if PART_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        remove_if_empty(of_encoder)
    remove_if_empty(parts)


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
