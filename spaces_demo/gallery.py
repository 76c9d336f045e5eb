"""Images and captions, encoded once and searched often.

Embeddings and thumbnails are cached as safetensors in the Hugging Face cache, keyed by model and data, so a second
start does not encode images again.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import faiss
import numpy as np
from encoder import PublishedModel
from photographs import Source, thumbnail
from safetensors import safe_open
from safetensors.numpy import save_file
from settings import SettingsError

logger = logging.getLogger("demo")

BATCH = 64
CAPTION_BATCH = 256
SECONDS_BETWEEN_LINES = 5
_FORMAT = 1  # version of the cache files


@dataclass(frozen=True)
class Album:
    """The data shown to visitors: thumbnails (JPEG) and captions, one entry per image."""

    thumbnails: list[bytes]
    captions: list[list[str]]
    broken: int

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def sentences(self) -> list[str]:
        """All distinct captions."""
        return list(dict.fromkeys(caption for captions in self.captions for caption in captions))

    @cached_property
    def described_by(self) -> dict[str, set[int]]:
        """Maps each caption to the rows of its images."""
        found: dict[str, set[int]] = {}
        for row, captions in enumerate(self.captions):
            for caption in captions:
                found.setdefault(caption, set()).add(row)
        return found


class Gallery:
    """An album, embedded by one model.

    Args:
        image_embeds: (photographs, dim) unit vectors.
        sentence_embeds: (sentences, dim) unit vectors, in the order of `album.sentences`.
    """

    def __init__(self, album: Album, encoder: PublishedModel, image_embeds: np.ndarray, sentence_embeds: np.ndarray):
        self.album = album
        self.encoder = encoder
        self.image_embeds = image_embeds
        self._images = _flat_index(image_embeds)
        self._sentences = _flat_index(sentence_embeds)

    def nearest_images(self, query: np.ndarray, count: int) -> list[tuple[float, int]]:
        """Cosine similarity and row of the best images, best first; the query is a unit vector (dim,)."""
        scores, rows = self._images.search(query[None], min(count, len(self.album)))
        return [(float(score), int(row)) for score, row in zip(scores[0], rows[0], strict=True)]

    def nearest_sentences(self, query: np.ndarray, count: int) -> list[tuple[float, str]]:
        """Cosine similarity and text of the best captions, best first."""
        scores, rows = self._sentences.search(query[None], min(count, len(self.album.sentences)))
        return [(float(score), self.album.sentences[row]) for score, row in zip(scores[0], rows[0], strict=True)]

    def rank_of_own(self, query: np.ndarray, sentence: str) -> int | None:
        """Rank (from 1) of the image with this caption; None if the sentence is not a caption."""
        own = self.album.described_by.get(sentence)
        if not own:
            return None
        scores = self.image_embeds @ query
        return int((scores > max(scores[row] for row in own)).sum()) + 1


def _flat_index(embeds: np.ndarray) -> faiss.IndexFlatIP:
    index = faiss.IndexFlatIP(embeds.shape[1])
    index.add(np.ascontiguousarray(embeds))
    return index


def open_galleries(source: Source, encoders: Sequence[PublishedModel], cache_dir: Path) -> list[Gallery]:
    """One gallery per model, loaded from the cache or else computed in one pass over the data.

    Raises:
        SettingsError: the data hold no readable image with a caption.
    """
    start = time.perf_counter()
    album_file = cache_dir / f"album-{source.fingerprint}-{_FORMAT}.safetensors"
    files = [
        cache_dir / f"embeds-{source.fingerprint}-{encoder.digest()}-{_FORMAT}.safetensors" for encoder in encoders
    ]
    album = _load_album(album_file)
    loaded = [None if album is None else _load(file) for file in files]
    embeds = {number: found for number, found in enumerate(loaded) if found is not None}
    missing = [number for number in range(len(encoders)) if number not in embeds]
    if album is None or missing:
        album, computed = _encode(source, [encoders[number] for number in missing])
        _save_album(album, album_file)
        for number, tensors in zip(missing, computed, strict=True):
            embeds[number] = tensors
            _save(tensors, files[number])
    seconds = time.perf_counter() - start
    logger.info("gallery of %s photographs and %s sentences is ready after %.1f s (%s)", f"{len(album):,}",
                f"{len(album.sentences):,}", seconds, "encoded" if missing else "from the cache")  # fmt: skip
    return [
        Gallery(album, encoder, embeds[number]["images"], embeds[number]["sentences"])
        for number, encoder in enumerate(encoders)
    ]


def _encode(source: Source, encoders: Sequence[PublishedModel]) -> tuple[Album, list[dict[str, np.ndarray]]]:
    images: list[list[np.ndarray]] = [[] for _ in encoders]
    thumbnails, captions = [], []
    progress = _Progress("photographs")
    photographs = iter(source)
    while batch := list(islice(photographs, BATCH)):
        for rows, encoder in zip(images, encoders, strict=True):
            rows.append(encoder.encode_rows([each.row for each in batch], [each.image for each in batch]))
        thumbnails += [thumbnail(each.image) for each in batch]
        captions += [each.captions for each in batch]
        progress.reached(len(captions))
    if not captions:
        raise SettingsError(
            f"VSE_DATASET={source.settings.dataset!r} holds no readable photograph with a caption "
            f"({source.broken} are broken); choose another data set or VSE_SPLIT"
        )
    album = Album(thumbnails, captions, source.broken)
    progress = _Progress("sentences", len(album.sentences))
    sentences: list[list[np.ndarray]] = [[] for _ in encoders]
    for first in range(0, len(album.sentences), CAPTION_BATCH):
        for rows, encoder in zip(sentences, encoders, strict=True):
            rows.append(encoder.encode_sentences(album.sentences[first : first + CAPTION_BATCH]))
        progress.reached(min(first + CAPTION_BATCH, len(album.sentences)))
    return album, [
        {"images": np.concatenate(image_rows), "sentences": np.concatenate(sentence_rows)}
        for image_rows, sentence_rows in zip(images, sentences, strict=True)
    ]


class _Progress:
    """Logs a line every few seconds."""

    def __init__(self, what: str, total: int | None = None):
        self.what = f"of {total:,} {what}" if total else what
        self.start = self.last = time.perf_counter()

    def reached(self, count: int) -> None:
        now = time.perf_counter()
        if now - self.last > SECONDS_BETWEEN_LINES:
            self.last = now
            logger.info("encoded %s %s, %.0f a second", f"{count:,}", self.what, count / (now - self.start))


def _save(tensors: dict[str, np.ndarray], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes whole files only; a cache that cannot be written costs time at the next start and nothing else."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata)
        os.replace(part, file)
    except OSError as error:
        logger.warning("the gallery could not be cached for the next start: %s", error)


def _load(file: Path) -> dict[str, np.ndarray] | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, "np") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}
    except Exception as error:  # truncated or invalid: treat as missing
        logger.warning("%s cannot be read and is computed again: %s", file.name, error)
        return None


def _save_album(album: Album, file: Path) -> None:
    tensors = {
        "jpeg": np.frombuffer(b"".join(album.thumbnails), dtype=np.uint8),
        "ends": np.cumsum([len(each) for each in album.thumbnails]),
        "captions": np.frombuffer(json.dumps(album.captions).encode(), dtype=np.uint8),
        "broken": np.array([album.broken]),
    }
    _save(tensors, file)


def _load_album(file: Path) -> Album | None:
    stored = _load(file)
    if stored is None:
        return None
    ends = stored["ends"].tolist()
    jpeg = stored["jpeg"].tobytes()
    thumbnails = [jpeg[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return Album(thumbnails, json.loads(stored["captions"].tobytes()), int(stored["broken"][0]))
