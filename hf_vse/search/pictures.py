"""The photographs behind the items of a gallery, to show them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from hf_vse.data.images import decode_image
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import IMAGE
from hf_vse.data.shards import picture_in_shard
from hf_vse.data.spec import DataSpec
from hf_vse.files import inside

if TYPE_CHECKING:
    from hf_vse.search.gallery import GalleryIndex
    from hf_vse.search.store import GalleryStore

SIDE = 400  # pixels: none is held much larger than it can be shown


def find_images(gallery: "GalleryIndex | GalleryStore", items: Sequence[Any]) -> list[PIL.Image.Image]:
    """The images of some items, from the folder or the data set that the gallery was made of.

    Raises:
        ValueError: the gallery was made of vectors alone, or an image is gone or broken.
    """
    root, origin = gallery.facts.get("root"), gallery.facts.get("origin")
    if items and all(isinstance(item, dict) and "file" in item for item in items):
        return [decode_image(picture_of(root, item["file"]), needed=SIDE) for item in items]
    if origin is None:
        raise ValueError("the gallery does not say where its photographs are: make it from a folder or a data set")
    spec = DataSpec.of_dict(origin, "the origin of the gallery")
    split = spec.load_split()
    if IMAGE not in split.column_names:
        raise ValueError(f"{spec.source} was read as features: there are no photographs to show")
    files = undecoded_images(split)
    return [decode_image(files[item["row"]][IMAGE], needed=SIDE) for item in items]


def picture_of(root: str | None, name: Any) -> dict[str, Any]:
    """`path` of the file of an item, in the folder that was indexed or where its data set says; `bytes` of a shard.

    Raises:
        ValueError: a gallery of a folder names a file outside of it.
    """
    path = Path(str(name)) if root is None else inside(root, name, "the file of an item")
    found = None if root is None else picture_in_shard(root, str(name))
    return {"path": str(path), "bytes": None} if found is None else found
