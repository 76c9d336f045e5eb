"""Foils that others have published, read from the files as they are distributed.

| name | files in `directory` | images |
|---|---|---|
| `vg_relation`, `vg_attribution` (ARO) | `visual_genome_{relation,attribution}.json` | `images/`, cut to the box |
| `sugarcrepe` | `{replace_obj,replace_att,replace_rel,swap_obj,swap_att,add_obj,add_att}.json` | COCO's `val2017/` |
| `winoground` | `examples.jsonl`, or a copy by `Dataset.save_to_disk` | `images/`, named without `.png` |
| `coco_order`, `flickr30k_order` | the Karpathy split file | as `load_karpathy` finds them |

ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936) averages over relations and pairs of attributes, which are the
kinds here, so `mean_of_kinds` of the probe is its macro accuracy; its own tables leave out some relations and the
pairs with fewer than 25 items. Its two orders shuffle with a parser and without a seed: with the rules of
`caption_foils.py` the numbers are near those of ARO, but not the same. SugarCrepe: Hsieh et al., NeurIPS 2023,
arXiv 2306.14610. Winoground: Thrush et al., CVPR 2022, arXiv 2204.03162; its scores need both images, see
`winoground_probe`.
"""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from datasets import Dataset, concatenate_datasets
from PIL import Image

from hf_vse.data.images import BrokenImageError, check_broken_share, decode_image
from hf_vse.data.karpathy import load_karpathy
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.scene_truth import check_choice
from hf_vse.data.schema import CAPTIONS, IMAGE
from hf_vse.evaluation.composition.caption_foils import Captions, false_captions
from hf_vse.evaluation.composition.probe import Foil
from hf_vse.evaluation.zero_shot import saved_dataset
from hf_vse.files import inside, read_json, read_json_lines

PublishedName = Literal["vg_relation", "vg_attribution", "sugarcrepe", "winoground", "coco_order", "flickr30k_order"]

SUGARCREPE_KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
_ARO_FILES = {"vg_relation": "visual_genome_relation.json", "vg_attribution": "visual_genome_attribution.json"}
_ARO_KINDS: dict[str, tuple[str, type]] = {
    "vg_relation": ("relation_name", str),
    "vg_attribution": ("attributes", list),
}
_FOLDERS = ("", "images", "val2017", "images/val2017", "val2014", "train2014", "images/val2014", "images/train2014")
_PREFIXES = ("", "COCO_val2014_", "COCO_train2014_")  # what COCO's images were called before 2017

LARGEST_SIDE = 1_000_000  # pixels
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Item(NamedTuple):
    """An entry of a file, before its image is looked for; `box` is the part of the image that it describes."""

    image: str
    box: Box | None
    true_caption: str
    false_caption: str
    kind: str


class ImageRows(Sequence):
    """Rows `{"image": ...}` of files and parts of them, opened only when asked for."""

    def __init__(self, images: Sequence[tuple[str, Box | None]]):
        self.images = list(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:  # type: ignore[override]  # nobody asks for a slice
        path, box = self.images[row]
        file = {"path": path, "bytes": None}
        if box is None:
            return {IMAGE: file}
        try:
            image: Image.Image = decode_image(file)
        except BrokenImageError:
            return {IMAGE: file}  # whoever decodes it meets the same error, and counts it
        return {IMAGE: image.crop(box)}


def read_entries(path: Path) -> list[tuple[Any, Any]]:
    """The entries of a JSON or JSON Lines file, each with its key or number."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: directory must hold the files as they are distributed")
    content = [line for _, line in read_json_lines(path)] if path.suffix == ".jsonl" else read_json(path)
    if not isinstance(content, dict | list) or not content:
        raise ValueError(f"{path} holds neither a list nor a dictionary of entries: download it again")
    return list(content.items() if isinstance(content, dict) else enumerate(content))


def fields(path: Path, key: Any, entry: Any, names: Sequence[str], kind: type | tuple[type, ...] = str) -> list[Any]:
    """Some fields of an entry; an error names the file, the entry and the field."""
    for name in names:
        if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
            found = f"is {entry[name]!r}" if isinstance(entry, dict) and name in entry else "is missing"
            raise ValueError(f"{path}, entry {key}: field {name!r} {found}; it is not the published file")
    return [entry[name] for name in names]


def aro_items(name: str, directory: Path) -> list[Item]:
    """`image_path`, `bbox_x/y/w/h`, `true_caption`, `false_caption`, and `relation_name` or `attributes` (a pair)."""
    path = directory / _ARO_FILES[name]
    items = []
    for key, entry in read_entries(path):
        image, true, false = fields(path, key, entry, ("image_path", "true_caption", "false_caption"))
        left, top, width, height = box_of(path, key, entry)
        field, kind = _ARO_KINDS[name]
        (group,) = fields(path, key, entry, (field,), kind)
        group = group if isinstance(group, str) else ", ".join(map(str, group))
        items.append(Item(image, (left, top, left + width, top + height), true, false, group))
    return items


def box_of(path: Path, key: Any, entry: Any) -> list[int]:
    """Left, top, width and height in whole pixels."""
    names = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
    box = fields(path, key, entry, names, (int, float))
    if not all(math.isfinite(value) and abs(value) < LARGEST_SIDE for value in box) or min(box[2:]) < 1:
        raise ValueError(f"{path}, entry {key}: the box {box} is not part of an image; it is not the published file")
    return [int(value) for value in box]


def sugarcrepe_items(name: str, directory: Path) -> list[Item]:
    """Of each kind a dictionary of `filename`, `caption`, `negative_caption`."""
    items = []
    for kind in SUGARCREPE_KINDS:
        path = directory / f"{kind}.json"
        for key, entry in read_entries(path):
            image, true, false = fields(path, key, entry, ("filename", "caption", "negative_caption"))
            items.append(Item(image, None, true, false, kind))
    return items


def winoground_items(name: str, directory: Path) -> list[Item]:
    """Two items for each line: `image_0` with `caption_0` against `caption_1`, and the other way round."""
    path = directory / "examples.jsonl"
    items = []
    for key, entry in read_entries(path):
        first, second, one, other = fields(path, key, entry, ("image_0", "image_1", "caption_0", "caption_1"))
        items += [Item(first, None, one, other, name), Item(second, None, other, one, name)]
    return items


def find_files(names: Sequence[str], folder: Path) -> dict[str, str]:
    """The paths of the images that exist: in the folder or one of the usual folders below."""
    found = {}
    folders = [folder / below for below in _FOLDERS if (folder / below).is_dir()]
    for name in dict.fromkeys(names):
        spellings = [f"{prefix}{name}" for prefix in _PREFIXES] + [f"{name}.png"]
        places = (inside(each, spelling, "the name of an image") for each in folders for spelling in spellings)
        if path := next((place for place in places if place.is_file()), None):
            found[name] = str(path.absolute())
    return found


def placed_foils(items: list[Item], folder: Path, max_broken_share: float) -> tuple[list[Foil], ImageRows]:
    """Foils of the items whose image is there; each part of a file is one image. Of Winoground, whole pairs."""
    files = find_files([item.image for item in items], folder)
    missing = {item.image: f"not in {folder}" for item in items if item.image not in files}
    check_broken_share(missing, len(files) + len(missing), max_broken_share)
    if items[0].kind == "winoground":
        pairs = zip(items[::2], items[1::2], strict=True)
        items = [item for pair in pairs for item in pair if not missing.keys() & {each.image for each in pair}]
    items = [item for item in items if item.image in files]
    rows = {image: row for row, image in enumerate(dict.fromkeys((item.image, item.box) for item in items))}
    foils = [Foil(rows[item.image, item.box], item.true_caption, (item.false_caption,), item.kind) for item in items]
    return foils, ImageRows([(files[name], box) for name, box in rows])


def saved_winoground(directory: Path) -> tuple[list[Foil], Dataset]:
    """From a copy by `Dataset.save_to_disk`, whose columns `image_0` and `image_1` hold the images."""
    dataset = saved_dataset(directory)
    if not isinstance(dataset, Dataset):
        raise ValueError(f"{directory} holds several splits: give the folder of one; it is not Winoground")
    columns = ("image_0", "image_1", "caption_0", "caption_1")
    if missing := [name for name in columns if name not in dataset.column_names]:
        raise ValueError(f"{directory} lacks the columns {missing}, has {dataset.column_names}; it is not Winoground")
    parts = [dataset.select_columns([name]).rename_column(name, IMAGE) for name in columns[:2]]
    foils = []
    for row, (one, other) in enumerate(zip(dataset["caption_0"], dataset["caption_1"], strict=True)):
        foils.append(Foil(row, one, (other,), "winoground"))
        foils.append(Foil(len(dataset) + row, other, (one,), "winoground"))
    return foils, undecoded_images(concatenate_datasets(parts))


def order_foils(name: str, directory: Path, split_file: Path | None, share: float) -> tuple[list[Foil], Dataset]:
    """Every test caption with its four shuffles, as ARO has them; captions that do not change are left out."""
    source = name.removesuffix("_order")
    splits = load_karpathy(source, directory, split_file=split_file, max_broken_share=share)
    if "test" not in splits:
        raise ValueError(
            f"the split file of {source} in {directory} has no image of the test split: give the whole file"
        )
    dataset = splits["test"]
    known = Captions(dataset[CAPTIONS][:])
    foils = []
    for image, sentences in enumerate(known.sentences):
        rng = random.Random(f"{name}/{image}")
        for sentence in sentences:
            if texts := false_captions(sentence, image, "order", known, rng):
                foils.append(Foil(image, sentence.text, texts, name))
    return foils, undecoded_images(dataset)


_READERS: dict[str, Callable[[str, Path], list[Item]]] = {
    "vg_relation": aro_items,
    "vg_attribution": aro_items,
    "sugarcrepe": sugarcrepe_items,
    "winoground": winoground_items,
}


def load_foils(
    name: PublishedName,
    directory: str | Path,
    image_dir: str | Path | None = None,
    *,
    max_broken_share: float = 0.02,
) -> tuple[list[Foil], ImageRows | Dataset]:
    """Published foils and their images, for `composition_probe` (`winoground_probe` for Winoground).

    Args:
        name: see the table above.
        directory: where the files are.
        image_dir: where the images are, directly or in a folder of the customary name; default: `directory`. For the
            two orders the folder of the images, if the split file is elsewhere.
        max_broken_share: images that may be missing. They are named in a warning, and their items left out.

    Returns:
        The foils, and rows `{"image": ...}` that `Foil.image` counts.

    Raises:
        OSError: a file is missing. ValueError: it is not the published file, or too many images are missing.
    """
    check_choice("name", name, get_args(PublishedName))
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"directory={str(directory)!r} is not a folder: give the one with the files of {name}")
    images = Path(image_dir) if image_dir is not None else directory
    if name in _READERS:
        if name == "winoground" and (directory / "state.json").is_file():
            return saved_winoground(directory)
        return placed_foils(_READERS[name](name, directory), images, max_broken_share)
    if images == directory:
        return order_foils(name, directory, None, max_broken_share)
    files = sorted(directory.glob(f"dataset_{name.removesuffix('_order')}*.json*"))
    if len(files) != 1:
        raise ValueError(f"directory={str(directory)!r} holds {len(files)} Karpathy split files of {name}: leave one")
    return order_foils(name, images, files[0], max_broken_share)
