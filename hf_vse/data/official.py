"""Digests of the splits that the field compares results on: other images of the same number are not these splits.

Captions are compared without case, space and punctuation, because copies of a data set differ in these, and of each
image in any order. COCO's ids (`cocoid`, annotation ids) tell a split too; those of Flickr8k and Flickr30K are no more
than positions in a file.

    test = load_pairs("flickr30k", data_dir=DIR)["test"].with_format(None)
    split_digests(*flatten_captions(test["captions"][:]))
"""

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256

import numpy as np

# Of the captions, and of COCO's ids. Those of Flickr8k test, COCO train and COCO validation are not known.
OFFICIAL_DIGESTS: dict[tuple[str, str], frozenset[str]] = {
    ("coco", "test"): frozenset({"d67a8cfbd4853947", "cad36a9e6a28bd08"}),
    ("flickr30k", "train"): frozenset({"20278ad78cbeb6c7"}),
    ("flickr30k", "validation"): frozenset({"fc3ed5a12531b26c"}),
    ("flickr30k", "test"): frozenset({"7d26475adb42d22d"}),
    ("flickr8k", "train"): frozenset({"8c3be28fa5ab23a2"}),
    ("flickr8k", "validation"): frozenset({"018bf5680719078d"}),
}
NO_WORDS = re.compile(r"[\W_]+")


def split_digests(
    captions: Sequence[str],
    text_to_image: Sequence[int] | np.ndarray,
    image_ids: Sequence[int] | None = None,
    caption_ids: Sequence[int] | None = None,
) -> frozenset[str]:
    """16 hex digits of the captions of a split, and 16 of its ids if they are given, in whatever order its rows are.

    Args:
        captions: of all images; text_to_image: (captions,) the image of each.
        image_ids: (images,); caption_ids: (captions,).
    """
    owners = np.asarray(text_to_image).tolist()
    found = {digest_by_image((NO_WORDS.sub("", caption.casefold()) for caption in captions), owners)}
    if image_ids is not None and caption_ids is not None:
        ids = (f"{image_ids[owner]} {number}" for owner, number in zip(owners, caption_ids, strict=True))
        found.add(digest_by_image(ids, owners))
    return frozenset(found)


def digest_by_image(texts: Iterable[str], owners: Sequence[int]) -> str:
    of_images: dict[int, list[str]] = {}
    for text, owner in zip(texts, owners, strict=True):
        of_images.setdefault(owner, []).append(text)
    images = sorted("\n".join(sorted(each)) for each in of_images.values())
    return sha256("\n\n".join(images).encode(errors="surrogatepass")).hexdigest()[:16]
