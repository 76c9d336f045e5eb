"""What an evaluation leaves behind: a record with everything needed to trust the numbers, and a table to read."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from hf_vse.data.schema import CAPTIONS, IMAGE_ID, fingerprint
from hf_vse.evaluation.evaluator import PairEmbeddings
from hf_vse.evaluation.metrics import chance_recalls, fold_metrics, retrieval_metrics

FOLD_SIZE = 1000


def split_record(pairs: PairEmbeddings, dataset: Dataset, five_fold: bool = False) -> dict[str, Any]:
    """Metrics of one split with its size and fingerprint.

    Args:
        pairs: the embeddings of `dataset`.
        five_fold: also the mean over consecutive folds of 1,000 images (COCO 1K protocol).
    """
    plain = dataset.with_format(None)
    images, texts = len(pairs.image_embeds), len(pairs.text_embeds)
    correspondence = pairs.image_embeds, pairs.text_embeds, pairs.text_to_image
    record = {
        "protocol": f"{images:,} images, {texts:,} captions, hit rate, ties against the query",
        "images": images,
        "captions": texts,
        "broken_images": pairs.broken,
        "fingerprint": fingerprint(plain[IMAGE_ID][:], plain[CAPTIONS][:]),
        "metrics": retrieval_metrics(*correspondence),
        "chance": chance_recalls(images, texts),
    }
    if five_fold:
        record["metrics_1k_folds"] = fold_metrics(*correspondence, FOLD_SIZE)
    return record


def recall_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A plain text table: a line for each name, columns R@1, R@5, R@10, MedR of both directions, and rsum."""
    width = max(12, *(len(name) for name in rows))
    columns = [f"{direction}_{level}" for direction in ("i2t", "t2i") for level in ("r1", "r5", "r10", "medr")]
    titles = ["R@1", "R@5", "R@10", "MedR"] * 2
    lines = [
        " " * width + f"{'image -> text':^32}" + f"{'text -> image':^32}",
        " " * width + "".join(f"{title:>8}" for title in titles) + f"{'rsum':>9}",
    ]
    for name, metrics in rows.items():
        cells = [f"{metrics[column]:8.1f}" if column in metrics else f"{'':8}" for column in columns]
        rsum = f"{metrics['rsum']:9.1f}" if "rsum" in metrics else ""
        lines.append(f"{name:<{width}}" + "".join(cells) + rsum)
    return "\n".join(line.rstrip() for line in lines)
