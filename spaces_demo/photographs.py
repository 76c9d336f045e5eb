"""The images of the gallery and their captions, from VSE_DATASET.

Rows are streamed, so only the part of a large data set that is shown is read. Nothing is read if the embeddings are
cached.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Image, get_dataset_split_names, load_dataset, load_from_disk
from huggingface_hub import HfApi
from limits import judge_size
from settings import Settings, SettingsError

logger = logging.getLogger("demo")

SPLITS = ("validation", "val", "valid", "dev", "test", "train")
CAPTION_COLUMNS = ("captions", "caption", "text", "sentences", *(f"caption_{number}" for number in range(5)))
THUMBNAIL_SIDE = 448  # pixels
_END_BYTES = 2**16


@dataclass(frozen=True)
class CaptionedImage:
    image: PIL.Image.Image
    captions: list[str]
    row: int  # of the split


def thumbnail(image: PIL.Image.Image) -> bytes:
    """JPEG of at most 448 x 448 pixels, without the metadata of the original."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    fine = max(small.size) <= 256  # chroma subsampling is visible in small drawings
    file = BytesIO()
    small.save(file, "JPEG", quality=92 if fine else 84, subsampling=0 if fine else 2)
    return file.getvalue()


class Source:
    """The data split given by the settings.

    Raises:
        SettingsError: the data set cannot be opened, or lacks the split, images or captions.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.path = Path(settings.dataset)
        self.broken = 0
        try:
            self.split = None if self._is_saved else self._choose(get_dataset_split_names(**self._builder))
            self.fingerprint = self._fingerprint()
        except SettingsError:
            raise
        except Exception as error:  # every loader raises other types; the remedy is the same
            raise self._unreadable(error) from error

    @property
    def _is_saved(self) -> bool:
        return (self.path / "dataset_info.json").is_file() or (self.path / "dataset_dict.json").is_file()

    @property
    def _builder(self) -> dict[str, Any]:
        """Arguments of `load_dataset`."""
        if self.path.is_file():
            return {"path": "parquet", "data_files": {self.settings.split or "train": str(self.path)}}
        if self.path.is_dir():
            kind = "parquet" if any(self.path.rglob("*.parquet")) else "imagefolder"
            return {"path": kind, "data_dir": str(self.path)}
        return {"path": self.settings.dataset}

    def _choose(self, names: list[str]) -> str:
        wanted = self.settings.split
        if wanted is not None and wanted not in names:
            raise SettingsError(f"VSE_SPLIT={wanted!r} is not in {self.settings.dataset}; it has {', '.join(names)}")
        return wanted or next((name for name in SPLITS if name in names), names[0])

    def _fingerprint(self) -> str:
        """Digest of the data: names, sizes and first and last bytes of local files, or the commit on the Hub."""
        digest = blake2b(f"{self.settings.split} {self.split} {self.settings.max_images}".encode(), digest_size=12)
        if not self.path.exists():
            digest.update(f"{self.settings.dataset} {HfApi().dataset_info(self.settings.dataset).sha}".encode())
            return digest.hexdigest()
        files = [self.path] if self.path.is_file() else sorted(each for each in self.path.rglob("*") if each.is_file())
        for each in files:
            size = each.stat().st_size
            digest.update(f"{each.relative_to(self.path)} {size}".encode())
            with open(each, "rb") as file:
                digest.update(file.read(_END_BYTES))
                file.seek(max(0, size - _END_BYTES))
                digest.update(file.read())
        return digest.hexdigest()

    def _unreadable(self, error: Exception) -> SettingsError:
        return SettingsError(
            f"VSE_DATASET={self.settings.dataset!r} cannot be read ({_reason(error)}); give a Hub data set, a "
            "parquet file, an image folder or a folder of save_to_disk"
        )

    def _open(self):
        if not self._is_saved:
            return load_dataset(**self._builder, split=self.split, streaming=True)
        saved = load_from_disk(str(self.path))
        return saved[self._choose(list(saved))] if isinstance(saved, dict) else saved

    def __iter__(self) -> Iterator[CaptionedImage]:
        """Images with at least one caption; broken images are counted and left out."""
        try:
            rows = self._open()
            columns = list(rows.features or next(iter(rows)))
        except Exception as error:
            raise error if isinstance(error, SettingsError) else self._unreadable(error) from error
        used = [name for name in CAPTION_COLUMNS if name in columns]
        if "image" not in columns or not used:
            found = ", ".join(columns)
            raise SettingsError(
                f"VSE_DATASET={self.settings.dataset!r} needs the columns image and captions; it has {found}"
            )
        decoder = Image()
        self.broken = 0
        rows = rows.cast_column("image", Image(decode=False)).select_columns(["image", *used])
        for number, row in enumerate(rows):
            if number == self.settings.max_images:
                break
            captions = _captions(row[name] for name in used)
            try:
                image = decoder.decode_example(row["image"])
                judge_size(image.size)
                image = image.convert("RGB")
            except Exception as error:  # missing, truncated, unknown format, decompression bomb, too long
                self.broken += 1
                logger.warning("photograph %d is left out: %s", number, _reason(error))
                continue
            if captions:
                yield CaptionedImage(image, captions, number)


def _captions(values: Iterator[Any]) -> list[str]:
    """The captions of one row, whether a column holds a string, a list, or dictionaries with the raw sentence."""
    found: list[str] = []
    for value in values:
        for each in [value] if isinstance(value, str | dict) else value or []:
            text = each.get("raw", "") if isinstance(each, dict) else each
            found.append(" ".join(text.split()))
    return list(dict.fromkeys(caption for caption in found if caption))


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):  # its own message shows a memory address
        return "not an image, or an unknown format"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
