"""Which images a split has is told by its captions, or by ids, and not by their number."""

from importlib.util import find_spec

import numpy as np
import pytest

from hf_vse.data.karpathy import OFFICIAL_IMAGES
from hf_vse.data.official import OFFICIAL_DIGESTS, split_digests
from hf_vse.evaluation.extended import read_annotations

CAPTIONS = ["Two dogs run .", "Dogs, in the snow!", "A boat", "The harbour at night", "It's a cat"]
OWNER = [0, 0, 1, 1, 2]


def test_order_spelling_and_rows_do_not_matter():
    (wanted,) = split_digests(CAPTIONS, OWNER)
    shuffled = ["a Boat.", "its a cat", " dogs in the SNOW", "the harbour at night", "two dogs  run"]
    assert split_digests(shuffled, np.array([2, 1, 0, 2, 0])) == {wanted}
    ids = split_digests(CAPTIONS, OWNER, [70, 50, 60], [1, 2, 3, 4, 5])
    assert len(ids) == 2 and ids > {wanted}
    assert split_digests(shuffled, [2, 1, 0, 2, 0], [70, 60, 50], [3, 5, 2, 4, 1]) == ids


@pytest.mark.parametrize(
    ("captions", "owner"),
    [
        ([*CAPTIONS[:4], "It's a dog"], OWNER),
        (CAPTIONS, [0, 1, 1, 0, 2]),
        (CAPTIONS[:4], OWNER[:4]),
        ([*CAPTIONS, CAPTIONS[0]], [*OWNER, 2]),
    ],
)
def test_other_captions_of_an_image_matter(captions, owner):
    assert split_digests(captions, owner).isdisjoint(split_digests(CAPTIONS, OWNER))


def test_other_ids_matter():
    ids = split_digests(CAPTIONS, OWNER, [70, 50, 60], [1, 2, 3, 4, 5]) - split_digests(CAPTIONS, OWNER)
    for others in (([70, 50, 61], [1, 2, 3, 4, 5]), ([70, 50, 60], [1, 2, 3, 5, 4])):
        assert ids.isdisjoint(split_digests(CAPTIONS, OWNER, *others))


def test_every_digest_is_of_an_official_split():
    for source, split in OFFICIAL_DIGESTS:
        assert split in OFFICIAL_IMAGES[source]


@pytest.mark.skipif(find_spec("eccv_caption") is None, reason="needs the package eccv-caption")
def test_the_ids_of_coco_are_those_that_others_published():
    captions, images = zip(*read_annotations("coco", "caption_to_image").tolist(), strict=True)
    rows = {image: row for row, image in enumerate(dict.fromkeys(images))}
    found = split_digests([""] * len(captions), [rows[image] for image in images], list(rows), captions)
    assert len(found & OFFICIAL_DIGESTS["coco", "test"]) == 1
