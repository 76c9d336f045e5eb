"""Recall of cross-modal retrieval, image to text and text to image, by the protocol of the field made explicit.

A slow and obvious implementation in NumPy, which holds the matrix of all similarities.
"""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """\
How well images find their texts and texts their images by the similarity of their embeddings: recall at 1, 5 and 10,
median and mean rank in both directions, and the sum of the six recalls.
"""

INPUTS = """\
Args:
    text_embeds (list of list of float): one embedding for each text; scale them to length one for cosine similarity.
    text_to_image (list of int): for each text the row of `image_embeds` that it describes.
    image_embeds (list of list of float): one embedding for each image, each described by at least one text. There are
        fewer images than texts, so they are given to `compute` as a whole, also where texts came by `add_batch`.

Returns:
    A dict with `i2t_r1`, `i2t_r5`, `i2t_r10` in percent, `i2t_medr` and `i2t_meanr` counted from 1, the same with
    `t2i_`, and `rsum`.

Examples:
    >>> recall = evaluate.load("cross_modal_recall")
    >>> images, texts = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.6, 0.8], [0.8, 0.6]]
    >>> found = recall.compute(image_embeds=images, text_embeds=texts, text_to_image=[0, 1, 1])
    >>> found["i2t_r1"], round(found["t2i_r1"], 1)
    (50.0, 66.7)
"""

CITATION = """\
@inproceedings{faghri2018vse++,
  title = {{VSE++}: Improving Visual-Semantic Embeddings with Hard Negatives},
  author = {Faghri, Fartash and Fleet, David J. and Kiros, Jamie Ryan and Fidler, Sanja},
  booktitle = {British Machine Vision Conference},
  year = {2018},
}
"""

LEVELS = (1, 5, 10)
TIE_TOLERANCE = 1e-12  # similarities of unit vectors that differ by less are the same number, rounded differently


def matrix(name: str, embeds: list) -> np.ndarray:
    """Embeddings as (items, dim) float64."""
    found = np.asarray(embeds, dtype=np.float64)
    if found.ndim != 2 or not len(found):
        raise ValueError(f"{name} must be a non-empty list of embeddings of one size, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} holds numbers that are not finite; leave these embeddings out")
    return found


def check(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> None:
    if images.shape[1] != texts.shape[1]:
        raise ValueError(f"image_embeds have {images.shape[1]} dimensions and text_embeds {texts.shape[1]}")
    if owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(f"text_to_image must lie in 0 .. {len(images) - 1}, the rows of image_embeds")
    without = np.setdiff1d(np.arange(len(images)), owner)
    if len(without):
        raise ValueError(f"image {without[0]} and {len(without) - 1} more have no text; leave them out")


def rank(positives: np.ndarray, negatives: np.ndarray, tolerance: float) -> int:
    """Negatives that score at least as high as the best positive."""
    return int((negatives >= positives.max() - tolerance).sum())


class CrossModalRecall(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"text_embeds": datasets.Sequence(number), "text_to_image": datasets.Value("int64")}
            ),
        )

    def _compute(self, text_embeds: list, text_to_image: list, image_embeds: list | None = None) -> dict[str, float]:
        if image_embeds is None:
            raise ValueError("image_embeds is missing; give compute() the embeddings of the images")
        images, texts = matrix("image_embeds", image_embeds), matrix("text_embeds", text_embeds)
        owner = np.asarray(text_to_image)
        check(images, texts, owner)
        scores = texts @ images.T
        tolerance = TIE_TOLERANCE * np.linalg.norm(images, axis=1).max() * np.linalg.norm(texts, axis=1).max()
        ranks = {
            "i2t": [rank(column[owner == i], column[owner != i], tolerance) for i, column in enumerate(scores.T)],
            "t2i": [rank(row[[i]], np.delete(row, i), tolerance) for row, i in zip(scores, owner, strict=True)],
        }
        metrics = {}
        for direction, found in ranks.items():
            for level in LEVELS:
                metrics[f"{direction}_r{level}"] = 100 * float(np.mean(np.array(found) < level))
            metrics[f"{direction}_medr"] = float(np.floor(np.median(found)) + 1)
            metrics[f"{direction}_meanr"] = float(np.mean(found) + 1)
        metrics["rsum"] = sum(metrics[f"{direction}_r{level}"] for direction in ranks for level in LEVELS)
        return metrics
