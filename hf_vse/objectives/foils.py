"""Foils as negatives of images (NegCLIP, Yuksekgonul et al., ICLR 2023, arXiv 2210.01936).

A foil is a caption in which something was changed, so that it is false of its image. The row of an image then has,
beside the texts, the foils of all captions of the batch:

    -log( e^{p/t} / (e^{p/t} + sum_j e^{s_j/t} + sum_k e^{f_k/t}) )    for `nce`, f_k of the foils

Every row loss takes them. Foils are never queries, and texts do not see them. They are candidates like those of
earlier steps, see `past.py`, but of this step and of all processes, with their gradient. A foil shows no image, so it
is a negative of the image whose caption it was; where an image has it word for word as a caption, it is none.
"""

from hf_vse.objectives.captions import Candidates
from hf_vse.objectives.past import Past, joined_candidates


def with_foils(past: Past | None, foils: Candidates) -> Past:
    """Further candidates of images alone: foils, beside the past texts.

    Args:
        foils: of all processes, their ids as `Captioned.foils` has them.
    """
    if past is None:
        return Past(images=None, texts=foils)
    return past._replace(texts=joined_candidates(past.texts, foils))
