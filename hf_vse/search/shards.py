"""A gallery from shards, by any number of processes on any number of machines that see one folder.

PARTS/shards-ENCODER/SHARD.CONTENT.arrow    what was encoded of a shard: key, item and vector of each image, whole or
                                            absent; `described.json` says by which model
PARTS/shards-ENCODER/*.claim                what processes work at now, see `claims.py`

Each process does the same: it encodes shards that nobody has claimed, until all have a part, and one of them makes
the gallery of the parts. How many there are, and which are lost, changes nothing in the gallery, because a shard is
encoded by itself, in batches of its own. The parts stay, so that only what changes is encoded again, and other
galleries are made of the same vectors.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_vse.data.features import feature_column, feature_values
from hf_vse.data.images import MAX_BROKEN_SHARE, check_broken_share
from hf_vse.data.shards import Shards, check_unchanged, read_shard
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images
from hf_vse.embed.store import DESCRIBED_FILE, KEY, KEY_ENCODING, ROWS, SHARD_FILE, Store, digest, keys_of, whole_table
from hf_vse.files import whole_file, write_text
from hf_vse.search.build import check_digest
from hf_vse.search.claims import share_work
from hf_vse.search.filters import item_fields
from hf_vse.search.header import to_json
from hf_vse.search.locations import open_store
from hf_vse.search.model import model_facts
from hf_vse.search.store import READ_AT_ONCE, GalleryRow, hexadecimal, move_gallery, named_rows
from hf_vse.search.vectors import TARGET_RECALL

logger = logging.getLogger(__name__)

ENCODED_AT_ONCE = 1024  # images, whose files are held in memory
ITEM, BROKEN = "item", b"broken"
ID_BYTES = 8


def index_shards(
    shards: Shards,
    encoder: Encoder,
    location: str | Path,
    parts: str | Path,
    *,
    kind: str = "auto",
    recall: float = TARGET_RECALL,
    batch_size: int = 64,
    num_workers: int = 0,
    max_broken_share: float = MAX_BROKEN_SHARE,
    image_column: str | None = None,
    caption_column: str | None = None,
    progress: bool = True,
) -> None:
    """Makes a gallery of shards, or brings it up to date; a share of the work where several processes call it.

    Args:
        shards: from `find_shards`.
        location: of the gallery, see `open_store`.
        parts: folder that all processes see, for what they encode; it may serve several galleries.
        image_column, caption_column: where their names do not tell.
        others: as of `build_gallery`.

    Raises:
        OSError, ValueError: a shard cannot be read or changes meanwhile, see `read_shard`; too many images are broken;
            the gallery cannot be written; or the encoder has no digest.
    """
    check_digest(encoder)
    open_store(location).check_place()
    encoded = ShardParts(shards, encoder, parts, image_column, caption_column)
    made_of = hexadecimal([list(encoded.shards), encoder.digest, kind, recall], 16)

    def done() -> Sequence[str]:
        return [gallery] if is_made_of(location, made_of) else []

    def fill(_: str) -> None:
        facts = encoded.check(max_broken_share)
        encoded.facts = model_facts(encoder) | facts | {"shards": made_of}
        move_gallery(encoded, open_store(location), kind, recall)

    gallery = f"gallery-{hexadecimal(str(location), ID_BYTES)}"
    if done():
        return
    options = (batch_size, num_workers, progress)
    share_work(encoded.folder, encoded.shards, encoded.there, lambda each: encoded.encode(each, encoder, *options))
    share_work(encoded.folder, [gallery], done, fill)


def is_made_of(location: str | Path, made_of: str) -> bool:
    """Whether the gallery at a location is there, whole, and made of these shards."""
    try:
        return open_store(location).facts.get("shards") == made_of
    except (FileNotFoundError, ValueError):  # none, or a damaged one, which is written anew
        return False


class ShardParts:
    """What was encoded of shards; when all is there, a source for `move_gallery`.

    Args:
        see `index_shards`.
    """

    facts: dict[str, Any]

    def __init__(
        self,
        shards: Shards,
        encoder: Encoder,
        parts: str | Path,
        image_column: str | None = None,
        caption_column: str | None = None,
    ):
        self.columns = image_column, caption_column
        self.root = shards.root
        names = [hexadecimal([each.name, each.identity, self.columns], ID_BYTES) for each in shards.shards]
        self.shards = dict(zip(names, shards.shards, strict=True))  # by the names of their parts
        self.store = Store.of(parts, "shards", {"model": encoder.name, "digest": encoder.digest})
        self.folder = self.store.folder
        self.location = str(self.folder)
        self.count = 0

    def there(self) -> set[str]:
        """The names of the parts that are there."""
        found = (path.name for path in self.folder.iterdir() if SHARD_FILE.fullmatch(path.name))
        return {name.partition(".")[0] for name in found} & self.shards.keys()

    def encode(self, name: str, encoder: Encoder, batch_size: int, num_workers: int, progress: bool) -> None:
        """Encodes a shard and writes its part."""
        shard = self.shards[name]
        keys, items, vectors, broken = [], [], [], []
        rows = read_shard(shard, *self.columns)
        while some := list(islice(rows, ENCODED_AT_ONCE)):
            images, of_images = zip(*some, strict=True)
            made = encode_images(encoder, images, batch_size, num_workers, progress)
            readable = made.readable.tolist()
            vectors.append(made.embeds.numpy()[readable])
            items += [item for item, good in zip(of_images, readable, strict=True) if good]
            broken += [item["file"] for item, good in zip(of_images, readable, strict=True) if not good]
        check_unchanged(shard)
        keys = [f"{item['file']} {shard.identity}" for item in items]
        vectors = [each for each in vectors if len(each)] or [np.empty((0, encoder.dim), np.float32)]
        self.write(name, keys, items, np.concatenate(vectors), broken)
        logger.info("%s: %s images are encoded", shard.name, f"{len(items):,}")

    def write(
        self, name: str, keys: Sequence[str], items: Sequence[Any], embeds: np.ndarray, broken: Sequence[str]
    ) -> None:
        columns = {
            KEY: pa.array([key.encode(*KEY_ENCODING) for key in keys], pa.binary()),
            ITEM: pa.array([to_json(item) for item in items], pa.large_string()),
            ROWS: feature_column(embeds),
        }
        table = pa.table(columns).replace_schema_metadata({BROKEN: json.dumps(broken)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        content = sink.getvalue()
        with whole_file(self.folder / f"{name}.{digest(content)}.arrow") as path:
            path.write_bytes(content)
        if not (self.folder / DESCRIBED_FILE).is_file():
            write_text(self.folder / DESCRIBED_FILE, self.store.described)

    def path(self, name: str) -> Path:
        return min(self.folder.glob(f"{name}.*.arrow"))  # another process may have written it too

    def check(self, max_broken_share: float) -> dict[str, Any]:
        """Counts the images and verifies the parts.

        Returns:
            What a gallery records.

        Raises:
            ValueError: a part is damaged, or too many images are broken.
        """
        self.count, broken = 0, []

        def items() -> Iterator[Any]:
            for name in self.shards:
                table = whole_table(self.path(name))
                if table is None:
                    raise ValueError(f"{self.path(name)} is damaged: remove it and repeat the command")
                self.count += table.num_rows
                broken.extend(json.loads(table.schema.metadata[BROKEN]))
                yield from map(json.loads, table.column(ITEM).to_pylist())

        fields = item_fields(items())
        check_broken_share(dict.fromkeys(broken, "cannot be read"), self.count + len(broken), max_broken_share)
        if not self.count:
            raise ValueError(f"none of the {len(broken):,} images of {self.root} can be read: nothing to search")
        return {"root": self.root, "origin": None, "broken": broken, "fields": fields}

    def __len__(self) -> int:
        return self.count

    def rows(self) -> Iterator[tuple[list[GalleryRow], np.ndarray]]:
        for name in self.shards:
            table = pa.ipc.open_file(pa.memory_map(str(self.path(name)))).read_all()
            items = [json.loads(item) for item in table.column(ITEM).to_pylist()]
            rows = named_rows(keys_of(table), items)
            embeds = feature_values(table.column(ROWS).combine_chunks())[1] if rows else np.empty((0, 1))
            for start in range(0, len(rows), READ_AT_ONCE):
                yield rows[start : start + READ_AT_ONCE], embeds[start : start + READ_AT_ONCE]
