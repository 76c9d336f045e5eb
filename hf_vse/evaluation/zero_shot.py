"""Zero-shot classification: an image belongs to the class whose description is most similar.

A class is described by its name in several templates; its vector is the mean of their unit vectors, brought to length
one (CLIP: Radford et al. 2021, arXiv 2103.00020, section 3.1.4). Nothing is trained, so that the templates and the
wording of the class names are part of the result and stand in the record. A tie counts against the model.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from torch import Tensor
from torch.nn.functional import normalize

from hf_vse.data.columns import SPLITS
from hf_vse.data.folders import images_below
from hf_vse.data.karpathy import load_from_hub
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import IMAGE
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.evaluation.ranks import Array, as_matrix, as_tensor, finite_norms, retrieval_ranks

LABEL = "label"
# "the" and not "a", which would be wrong before a vowel and before what cannot be counted.
TEMPLATES = (
    "the {}",
    "a picture that shows the {}",
    "the {} can be seen here",
    "somebody photographed the {}",
    "here is a view of the {}",
)


class LabelledImages(NamedTuple):
    """`images` with the one column `image`, not decoded; `labels (images,)` int64, the places of their classes in
    `class_names`."""

    images: Dataset
    labels: Tensor
    class_names: list[str]


def check_class_names(class_names: Sequence[str]) -> None:
    if len(class_names) < 2:
        raise ValueError(f"class_names has {len(class_names)} names: a classification needs at least 2 classes")
    repeated = [name for name, times in Counter(class_names).items() if times > 1]
    if repeated:
        raise ValueError(f"class name {repeated[0]!r} appears twice, so that none could be told apart: rename one")


def check_templates(templates: Sequence[str]) -> None:
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r:.100} lacks {{}}, the place of the class name: add it")
    if not templates:
        raise ValueError("templates is empty: give at least one, such as 'the {}'")


def class_vectors(encoder: Encoder, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """One unit vector for each class, (classes, dim) float32.

    Raises:
        ValueError: fewer than two classes, two of one name, or a template without {}.
    """
    check_templates(templates)
    check_class_names(class_names)
    # Braces in the name of a class mean nothing.
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    embeds = encode_texts(encoder, texts)  # (classes * templates, dim)
    return normalize(embeds.view(len(class_names), len(templates), -1).mean(dim=1), dim=1)


def zero_shot_metrics(
    image_embeds: Array, labels: Array, class_vectors: Array, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """How often the class of an image is the most similar one.

    Args:
        image_embeds: (images, dim); class_vectors: (classes, dim).
        labels: (images,) the row of `class_vectors` that each image belongs to.
        class_names: what to call the classes in `per_class`; by default their numbers.

    Returns:
        In percent `top1`, `top5` with more than five classes, and `mean_per_class`, the mean over classes of their
        `top1`; `chance`, what guessing scores in each of these; the numbers of `images` and `classes`; and
        `per_class`, for each class that has images their number and their `top1`.

    Raises:
        ValueError: shapes that do not fit, labels that name no class, or embeddings that are not finite.
    """
    images, classes = as_matrix("image_embeds", image_embeds), as_matrix("class_vectors", class_vectors)
    for name, matrix in (("image_embeds", images), ("class_vectors", classes)):
        finite_norms(name, matrix)  # here, where the names are those of this function
    owner = as_tensor(labels).long()
    if images.shape[1] != classes.shape[1] or owner.shape != (len(images),):
        raise ValueError(
            f"image_embeds {tuple(images.shape)}, class_vectors {tuple(classes.shape)} and labels "
            f"{tuple(owner.shape)} do not fit: give (images, dim), (classes, dim) and (images,)"
        )
    if owner.min() < 0 or owner.max() >= len(classes):
        raise ValueError(f"labels must lie in 0 .. {len(classes) - 1}, got {owner.min()} .. {owner.max()}")
    # The images are queries and the classes candidates, those without an image too.
    _, ranks = retrieval_ranks(classes, images, owner, distractors=True)
    names = [str(number) for number in range(len(classes))] if class_names is None else class_names
    first = (ranks == 0).double()
    per_class = {
        names[label]: {"images": int((owner == label).sum()), "top1": 100 * first[owner == label].mean().item()}
        for label in owner.unique().tolist()
    }
    chance = 100 / len(classes)
    metrics: dict[str, Any] = {"top1": 100 * first.mean().item()}
    metrics |= {"top5": 100 * (ranks < 5).double().mean().item()} if len(classes) > 5 else {}
    metrics["mean_per_class"] = sum(each["top1"] for each in per_class.values()) / len(per_class)
    return metrics | {
        "chance": {name: 5 * chance if name == "top5" else chance for name in metrics},
        "images": len(images),
        "classes": len(classes),
        "per_class": per_class,
    }


def zero_shot_classification(
    encoder: Encoder,
    labelled: LabelledImages,
    templates: Sequence[str] = TEMPLATES,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Zero-shot classification of images whose classes are known.

    Args:
        labelled: what `load_labelled` or `labelled_images` returns.
        templates: sentences with {} for the class name.

    Returns:
        What `zero_shot_metrics` returns, `protocol` in words, `broken_images` left out, and the `templates`.
    """
    vectors = class_vectors(encoder, labelled.class_names, templates)
    embeds, readable = encode_images(encoder, labelled.images, batch_size, num_workers, progress)
    if not readable.any():
        raise ValueError(f"none of the {len(embeds)} images can be read; check the data directory")
    metrics = zero_shot_metrics(embeds[readable], labelled.labels[readable], vectors, labelled.class_names)
    protocol = (
        f"{metrics['images']:,} images, {len(vectors):,} classes, {len(templates)} templates, ties count as wrong"
    )
    return {"protocol": protocol, **metrics, "broken_images": int((~readable).sum()), "templates": list(templates)}


def labelled_images(
    dataset: Dataset,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
) -> LabelledImages:
    """Images and classes from any data set that has both.

    Args:
        image_column, label_column: by default the only column of images, and the only `ClassLabel` or else "label".
        class_names: what to call the classes, in the order of their numbers; by default as the data set does, with
            spaces for underscores. A column of strings has its classes in alphabetical order.

    Raises:
        ValueError: no such column, or rows without a class.
    """
    image_column = image_column or only_column(dataset, Image, IMAGE, "image_column")
    label_column = label_column or only_column(dataset, ClassLabel, LABEL, "label_column")
    for name, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in dataset.column_names:
            raise ValueError(f"{name}={column!r} is not among the columns {', '.join(dataset.column_names)}: name one")
    values = dataset.with_format(None)[label_column][:]
    feature = dataset.features[label_column]
    names = feature.names if isinstance(feature, ClassLabel) else None
    if values and isinstance(values[0], str):
        names = sorted({value for value in values if value is not None})
        numbers = {name: number for number, name in enumerate(names)}
        values = [numbers.get(value) for value in values]
    chosen = class_names or (names and [name.replace("_", " ") for name in names])
    if not chosen:
        raise ValueError(f"label_column={label_column!r} has numbers without names: give class_names")
    if names and len(chosen) != len(names):
        raise ValueError(f"class_names has {len(chosen)} names for the {len(names)} classes of {label_column!r}")
    check_class_names(chosen)
    row = next((row for row, value in enumerate(values) if value not in range(len(chosen))), None)
    if row is not None:
        raise ValueError(
            f"label_column={label_column!r} has {values[row]!r} in row {row}, none of the {len(chosen)} classes: "
            "take another split or column, or leave such rows out"
        )
    images = dataset.select_columns([image_column]).rename_columns({image_column: IMAGE})
    return LabelledImages(undecoded_images(images), torch.tensor(values, dtype=torch.int64), list(chosen))


def only_column(dataset: Dataset, kind: type, customary: str, argument: str) -> str:
    """The only column of a type, or the one with the usual name."""
    found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if len(found) != 1 and customary not in dataset.column_names:
        raise ValueError(f"{argument} is ambiguous among the columns {', '.join(dataset.column_names)}: name it")
    return customary if customary in dataset.column_names else found[0]


def load_labelled(
    source: str | Path,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> LabelledImages:
    """One split of images with their classes.

    Args:
        source: a folder with one folder of images for each class (or such a folder for each split), a saved data set,
            or a data set of the Hub, "org/name".
        split: which to take; by default test, else validation, else the only one.
        image_column, label_column, class_names: see `labelled_images`.

    Raises:
        OSError, ValueError: nothing to read there, or no such split or column.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise FileNotFoundError(
                f"source={str(source)!r} does not exist: give a folder or a Hub id like 'org/name'"
            )
        options: dict[str, Any] = {"cache_dir": cache_dir and str(cache_dir)}
        loaded = load_from_hub(str(source), revision, **options)
    elif any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        loaded = saved_dataset(path)
    elif label_column is not None:
        raise ValueError(f"label_column={label_column!r} has no effect for {path}, whose folders name the classes")
    elif not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: give a folder with one folder of images for each class")
    else:
        return labelled_images(read_class_folders(path, split), class_names=class_names)
    splits = dict(loaded) if isinstance(loaded, DatasetDict) else {"all": loaded}
    return labelled_images(choose_split(splits, split), image_column, label_column, class_names)


def saved_dataset(path: Path) -> Any:
    """A copy by `save_to_disk`; raises ValueError where it is damaged."""
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # datasets and pyarrow raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a complete data set ({reason:.200}): save it there again") from error


def choose_split(splits: dict[str, Any], split: str | None) -> Any:
    """The split of that name, or by default the one to test on."""
    known = {SPLITS.get(name, name): part for name, part in reversed(splits.items())} | splits
    wanted = [split] if split else ["test", "validation", *(splits if len(splits) == 1 else [])]
    for name in wanted:
        if name in known:
            return known[name]
    raise ValueError(f"split={split!r} is not among the splits {', '.join(splits)}: name one of them")


def read_class_folders(root: Path, split: str | None = None) -> Dataset:
    """Images of a folder of class folders. A class may be called "train": only where all folders are named like splits
    and hold folders, they are the splits."""
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."}
    nested = [any(inner.is_dir() for inner in path.iterdir()) for path in folders.values()]
    if folders and all(nested) and all(name in SPLITS or name == split for name in folders):
        return read_class_folders(choose_split(folders, split))
    if split is not None:
        raise ValueError(f"split={split!r} cannot be chosen, {root} has no folders of splits: leave it out")
    files = [(file, label) for label, folder in enumerate(folders.values()) for file in images_below(folder)]
    if not files:
        raise FileNotFoundError(f"{root} holds no folders of images: give a folder with one folder for each class")
    names = [name.replace("-", " ").replace("_", " ") for name in folders]
    check_class_names(names)
    paths, labels = map(list, zip(*files, strict=True))
    features = Features({IMAGE: Image(decode=False), LABEL: ClassLabel(names=names)})
    return Dataset.from_dict({IMAGE: paths, LABEL: labels}, features=features)
