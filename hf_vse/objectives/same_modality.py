"""Images as negatives of images, and texts of texts.

The row of an image then has, beside the texts, the other images of the batch, that of a text the other texts:

    -log( e^{p/t} / (e^{p/t} + sum_j e^{s_j/t} + sum_k e^{o_k/t}) )    for `nce`, o_k of the same modality

With one caption an image that is NT-Xent of SimCLR (arXiv 2002.05709), whose two views are here an image and its
caption; MV-InfoNCE (arXiv 2507.06979) puts both rows of a pair in one logarithm. Every row loss takes them. They are
candidates like those of earlier steps, see `past.py`, but of this step and of all processes, with their gradient.
What shows the query's image, or has a caption of it, is no negative.
"""

from hf_vse.objectives.past import Candidates, Past, joined_candidates


def with_same_modality(past: Past | None, images: Candidates, texts: Candidates) -> Past:
    """Further candidates: images for images and texts for texts, beside the past ones.

    Args:
        images, texts: of all processes, their ids as `Captioned.own_ids` has them.
    """
    if past is None:
        return Past(images=texts, texts=images)  # texts see `images`, images see `texts`
    return Past(joined_candidates(past.images, texts), joined_candidates(past.texts, images))
