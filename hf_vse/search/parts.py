"""What interrupted runs have encoded, until the gallery is complete.

INDEX/parts/DIGEST/    a store (see `embed/store.py`) of vectors by the encoder of that digest
"""

import re
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from hf_vse.embed.store import Store

PARTS_FOLDER = "parts"
# A shard, or a file that earlier versions wrote instead; an unfinished one begins with a dot.
PART_FILE = re.compile(r"\.?[0-9a-f]{16}(\.[0-9a-f]{16})?(\.\d+)?\.(arrow|safetensors|json|new)")
DIGEST_FOLDER = re.compile(r"[0-9a-f]{32}")


def interrupted_parts(folder: Path, digest: str) -> Store:
    """The vectors by the encoder of that digest, of a gallery that is not complete."""
    return Store(folder / PARTS_FOLDER / blake2b(digest.encode(), digest_size=16).hexdigest())


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
