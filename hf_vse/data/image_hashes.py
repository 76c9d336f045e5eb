"""A hash of what a photograph shows: near for copies of one photograph, far for different photographs.

The hash has 112 numbers from -127 to 127. 80 are the lowest frequencies of the brightness (the discrete cosine
transform behind pHash, without its mean), each weighted by its frequency, because the amplitudes of photographs fall
as 1/f (Field, J. Opt. Soc. Am. A 4, 1987), and normalised, so that exposure and contrast do not matter. 32 are the
colours of 4 x 4 fields. Two images are near-duplicates if the squared distance is at most `NEAR`. Numbers instead of
signs cost 112 bytes instead of 8 and find more: see `scripts/benchmarks/results/near_duplicates.json`.
"""

import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
from datasets import Dataset
from tqdm.auto import tqdm

from hf_vse.data.decoding import decode_image
from hf_vse.data.digests import item_key
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import IMAGE

logger = logging.getLogger(__name__)

SIDE, FREQUENCIES, FIELDS = 32, 9, 4  # pixels; per direction; per direction
UNIT = 127
COLOUR = 15.0  # root mean square difference of the colours, of 255, that is a distance of 1
NEAR = round(0.95 * UNIT**2)
FLAT = 1.0  # standard deviation of the brightness, of 255, below which an image shows nothing to compare
LENGTH = FREQUENCIES**2 - 1 + 2 * FIELDS**2
AT_ONCE = 64  # images in memory
CACHE = "hf_vse_image_hashes.sqlite"  # in the Hugging Face cache; delete it to hash anew

_places = np.arange(SIDE) + 0.5
_waves = np.arange(FREQUENCIES)[:, None]
COSINES = np.cos(np.pi / SIDE * _waves * _places) * np.sqrt(2 / SIDE)  # (frequencies, pixels)
COSINES[0] /= np.sqrt(2)
WEIGHTS = np.hypot(_waves, _waves.T).ravel()[1:]


def image_hash(image: PIL.Image.Image) -> np.ndarray:
    """(112,) int8 of an RGB image; zeros if it shows nothing but one colour."""
    pixels = np.asarray(image.convert("YCbCr").resize((SIDE, SIDE), PIL.Image.Resampling.BOX), np.float64)
    brightness = (COSINES @ pixels[..., 0] @ COSINES.T).ravel()[1:]
    if np.linalg.norm(brightness) < FLAT * SIDE:
        return np.zeros(LENGTH, np.int8)
    brightness *= WEIGHTS
    size = SIDE // FIELDS
    colours = pixels[..., 1:].reshape(FIELDS, size, FIELDS, size, 2).mean((1, 3)).ravel() - 128
    parts = brightness / np.linalg.norm(brightness), colours / (COLOUR * np.sqrt(colours.size))
    return np.rint(np.concatenate(parts) * UNIT).clip(-UNIT, UNIT).astype(np.int8)


def hash_of(value: Any) -> np.ndarray:
    """The hash of an image as it is stored; zeros for one that cannot be read."""
    try:
        return image_hash(decode_image(value, needed=SIDE))
    except Exception:  # it is reported where it is read for training
        return np.zeros(LENGTH, np.int8)


def image_hashes(split: Dataset, cache: Path | None = None) -> np.ndarray:
    """The hashes (images, 112) int8 of a split with the column `image`, computed once for each content.

    Args:
        cache: the file that keeps them; by default in the Hugging Face cache.
    """
    images = undecoded_images(split)
    found = np.zeros((len(images), LENGTH), np.int8)
    kept = KeptHashes(cache or Path(datasets.config.HF_CACHE_HOME) / CACHE)
    with ThreadPoolExecutor() as pool, closing(kept), tqdm(total=len(images), desc="hashing images") as bar:
        for start in range(0, len(images), AT_ONCE):
            values = images[start : start + AT_ONCE][IMAGE]
            keys = list(pool.map(key_of, values))
            known = kept.read(keys)
            new = [place for place, key in enumerate(keys) if key not in known]
            hashes = dict(zip(new, pool.map(hash_of, [values[place] for place in new]), strict=True))
            kept.write({key: each for place, each in hashes.items() if (key := keys[place]) is not None})
            for place, key in enumerate(keys):
                found[start + place] = hashes[place] if place in hashes else known[key]
            bar.update(len(values))
    return found


def key_of(value: Any) -> bytes | None:
    """What the hash is kept by; None for an image in an archive or on the net, whose content is not at hand."""
    if value.get("bytes") is None and not Path(value.get("path") or "").is_file():
        return None
    return bytes.fromhex(item_key(value))


class KeptHashes:
    """Hashes by the content of the image, in one file that processes share.

    Where the file cannot be used this is said once, and nothing is kept.
    """

    def __init__(self, path: Path):
        self.path = path
        self.table: sqlite3.Connection | None = None
        with self.unless_broken():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.table = sqlite3.connect(path, timeout=60)
            self.table.execute("CREATE TABLE IF NOT EXISTS hashes (key BLOB PRIMARY KEY, hash BLOB)")

    @contextmanager
    def unless_broken(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            logger.warning("%s cannot keep hashes (%s), they are computed each time: remove it", self.path, error)
            self.close()

    def read(self, keys: Sequence[bytes | None]) -> dict[bytes | None, np.ndarray]:
        found: dict[bytes | None, np.ndarray] = {}
        if self.table is not None:
            with self.unless_broken():
                marks = ", ".join("?" * len(keys))
                rows = self.table.execute(f"SELECT key, hash FROM hashes WHERE key IN ({marks})", keys)
                found |= {key: np.frombuffer(kept, np.int8) for key, kept in rows if len(kept) == LENGTH}
        return found

    def write(self, hashes: Mapping[bytes, np.ndarray]) -> None:
        if self.table is not None and hashes:
            with self.unless_broken(), self.table:
                rows = [(key, each.tobytes()) for key, each in hashes.items()]
                self.table.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?)", rows)

    def close(self) -> None:
        if self.table is not None:
            self.table.close()
        self.table = None
