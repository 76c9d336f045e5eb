"""The text tower of a gallery's model as ONNX, kept with the gallery: sentences are answered without torch.

INDEX/queries/DIGEST/       of the model with that digest, which is the gallery's or the tower is not used
    text_encoder.onnx       gives `embeds`, the unit vectors of sentences
    tokenizer.json          cuts and pads as the processor of the model does
    queries.json            the digest of the model, size and checksum of both files

It is compared with the model before it is kept, and written whole or not at all.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_vse.files import read_json, write_json
from hf_vse.search.header import file_checksum
from hf_vse.search.parts import remove_if_empty

if TYPE_CHECKING:  # queries are answered without them
    from tokenizers import Encoding

    from hf_vse.embed.adapters.vse import VSEEncoder
    from hf_vse.embed.encoder import Encoder
    from hf_vse.search.store import GalleryStore

logger = logging.getLogger(__name__)

QUERIES_FOLDER = "queries"
TOWER_FILES = TOWER_FILE, TOKENIZER_FILE, RECORD_FILE = "text_encoder.onnx", "tokenizer.json", "queries.json"
TOWER_FOLDER = re.compile(r"[0-9a-f]{32}(\.\d+)?")
PACKAGES = ("onnxruntime", "tokenizers")
LARGEST_DIFFERENCE = 1e-5  # of any number of a unit vector
AGAIN = "run `hf-vse index --fast_queries` again"
# Short, long, in capitals, with marks, in other scripts: where two ways of reading would differ.
PROBES = [
    "a",
    "Two DOGS in the snow, at night!",
    "une maison \u00e0 c\u00f4t\u00e9",
    "\u4e24\u53ea\u72d7",
    "red " * 600,
]


class TextTower:
    """The text side of an `Encoder`, from the files of `write_text_tower`.

    Args:
        folder: with the three files.
        digest: of the model that made the gallery.

    Raises:
        OSError: a file is missing.
        ValueError: it is of another model, or a file is damaged.
    """

    def __init__(self, folder: Path, digest: str):
        import onnxruntime
        from tokenizers import Tokenizer

        record = read_json(folder / RECORD_FILE, dict)
        if record.get("digest") != digest:
            raise ValueError(f"{folder} is not of the model that made the gallery: {AGAIN}")
        for name in (TOWER_FILE, TOKENIZER_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: {AGAIN}")
            if file_checksum(folder / name) != record.get(name):
                raise ValueError(f"{folder / name} is damaged (its checksum differs): {AGAIN}")
        self.name, self.digest = str(record.get("model")), digest
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self.session = onnxruntime.InferenceSession(folder / TOWER_FILE, providers=["CPUExecutionProvider"])

    def query(self, text: str | Sequence[str], image: Any = None, image_weight: float = 0.5) -> np.ndarray:
        """Unit vectors of sentences, (sentences, dim) float32; as `Encoder.query`, without images.

        Raises:
            ValueError: an empty sentence, or an image.
        """
        if image is not None:
            raise ValueError("the text tower of a gallery reads no images: open its model")
        sentences = [text] if isinstance(text, str) else list(text)
        if not sentences or not all(sentence.strip() for sentence in sentences):
            raise ValueError("a query is empty; write a sentence, such as 'two dogs in the snow'")
        tokens = self.tokenizer.encode_batch(sentences)
        if any(each.overflowing for each in tokens):
            most = (self.tokenizer.truncation or {})["max_length"]
            logger.warning("the text tower reads %d tokens of a sentence; longer ones are cut", most)
        return self.encode_tokens(tokens)

    def encode_tokens(self, tokens: "Sequence[Encoding]") -> np.ndarray:
        """(sentences, dim)"""
        known = {
            "input_ids": [each.ids for each in tokens],
            "attention_mask": [each.attention_mask for each in tokens],
            "token_type_ids": [each.type_ids for each in tokens],
        }
        inputs = {each.name: np.array(known[each.name], np.int64) for each in self.session.get_inputs()}
        (embeds,) = self.session.run(["embeds"], inputs)
        return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


def open_text_tower(gallery: "GalleryStore") -> TextTower | None:
    """The text tower that a gallery carries; None if it has none, or what runs it is not installed.

    Raises:
        OSError, ValueError: see `TextTower`.
    """
    digest = gallery.facts.get("digest")
    if "://" in gallery.location or digest is None or not all(map(find_spec, PACKAGES)):
        return None
    folder = tower_folder(Path(gallery.location), digest)
    return TextTower(folder, digest) if folder.is_dir() else None


def tower_folder(folder: Path, digest: str) -> Path:
    return folder / QUERIES_FOLDER / blake2b(digest.encode(), digest_size=16).hexdigest()


def check_text_tower(encoder: "Encoder") -> None:
    """Raises ValueError or ImportError, before the work, for a model whose text tower cannot be kept."""
    if encoder.kind != "vse":
        raise ValueError(f"--fast_queries needs a model of `hf-vse train`, {encoder.name} is of kind {encoder.kind!r}")
    if encoder.dtype != "float32":
        raise ValueError(f"--fast_queries needs vectors in float32: leave out --dtype {encoder.dtype}")
    if not cast("VSEEncoder", encoder).processor.tokenizer.is_fast:
        raise ValueError(f"--fast_queries needs a tokenizer.json, which {encoder.name} does not have")
    if missing := [name for name in ("onnx", "onnxscript", *PACKAGES) if find_spec(name) is None]:
        raise ImportError(f"--fast_queries needs {', '.join(missing)}: pip install 'hf_vse[onnx]'")


def write_text_tower(folder: Path, encoder: "VSEEncoder", export: Callable[[Any, Any, Path], None]) -> None:
    """Keeps the text tower of the model with the gallery in `folder`, unless it is there; removes those of others.

    Args:
        export: `export_text_tower` of `hub/onnx_export.py`.

    Raises:
        ValueError: what is exported gives other vectors than the model.
    """
    import torch

    from hf_vse.embed.batches import to_device

    place = tower_folder(folder, encoder.digest)
    if not place.is_dir():
        unfinished = place.with_name(f"{place.name}.{os.getpid()}")
        unfinished.mkdir(parents=True)
        try:
            logger.info("exporting the text tower, and comparing it with the model")
            export(encoder.model, encoder.processor, unfinished / TOWER_FILE)
            inputs = encoder.processor(text=PROBES)  # from now on the tokenizer knows how to cut and to pad
            with torch.no_grad():
                wanted = encoder.model(**to_device(inputs, encoder.model)).text_embeds.cpu().numpy()
            encoder.processor.tokenizer.backend_tokenizer.save(str(unfinished / TOKENIZER_FILE))
            record = {"digest": encoder.digest, "model": encoder.name}
            record |= {name: file_checksum(unfinished / name) for name in (TOWER_FILE, TOKENIZER_FILE)}
            write_json(unfinished / RECORD_FILE, record)
            tower = TextTower(unfinished, encoder.digest)
            found = np.abs(tower.encode_tokens(tower.tokenizer.encode_batch(PROBES)) - wanted).max()
            if not found <= LARGEST_DIFFERENCE:
                raise ValueError(
                    f"the exported text tower of {encoder.name} differs from the model by {found:.1e}: leave out "
                    "--fast_queries"
                )
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    remove_other_towers(folder, encoder.digest)


def remove_other_towers(folder: Path, digest: str | None) -> None:
    """Removes the text towers of other models than the gallery's, and what killed runs have left."""
    for path in sorted((folder / QUERIES_FOLDER).glob("*")):
        current = digest is not None and path == tower_folder(folder, digest)
        if TOWER_FOLDER.fullmatch(path.name) and not current and not path.is_symlink():
            for name in TOWER_FILES:
                (path / name).unlink(missing_ok=True)
            remove_if_empty(path)
    remove_if_empty(folder / QUERIES_FOLDER)
