"""What an evaluation leaves behind: a record with everything needed to trust the numbers, and a table to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor

from hf_vse.data.schema import CAPTIONS, IMAGE_ID, fingerprint
from hf_vse.evaluation.equal_captions import equal_caption_record
from hf_vse.evaluation.evaluator import PairEmbeddings
from hf_vse.evaluation.metrics import chance_recalls, fold_metrics, summarize_ranks
from hf_vse.evaluation.protocols import FOLD_SIZE, split_title
from hf_vse.evaluation.ranks import retrieval_ranks

# What follows "metrics" in the name of an entry, and the name of the row in the table.
KINDS = {"": "", "_1k_folds": " 5x1K", "_equal_captions": ", equal captions"}
FOLDED = ("coco", 5 * FOLD_SIZE)  # the data set and the images that are also reported as the mean of five folds


def split_record(
    pairs: PairEmbeddings,
    dataset: Dataset | None,
    source: str = "",
    split: str = "",
    ranks: tuple[Tensor, Tensor] | None = None,
    captions: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Metrics of one split with its size and fingerprint.

    Args:
        pairs: the embeddings of `dataset`.
        source, split: where it comes from; it has the name of an official split only if it has its size.
        ranks: of `retrieval_ranks`, where they are known already.
        captions: in the order of the embeddings; default: those of `dataset`.

    Returns:
        Where the captions are known, also what `equal_caption_record` returns.
    """
    images, texts = len(pairs.image_embeds), len(pairs.text_embeds)
    correspondence = pairs.image_embeds, pairs.text_embeds, pairs.text_to_image
    ranks = ranks or retrieval_ranks(*correspondence)
    title, official = split_title(source, split, images, texts, pairs.broken)
    record = {
        "title": title,
        "official": official,
        "protocol": f"{images:,} images, {texts:,} captions, hit rate, ties against the query",
        "images": images,
        "captions": texts,
        "broken_images": pairs.broken,
        "fingerprint": dataset and data_fingerprint(dataset),
        "metrics": summarize_ranks(*ranks),
        "chance": chance_recalls(images, texts, pairs.text_to_image.bincount().tolist()),
    }
    if (source, images) == FOLDED:
        record["metrics_1k_folds"] = fold_metrics(*correspondence, FOLD_SIZE)
    if captions is None and dataset is not None:
        captions = captions_embedded(pairs, dataset)
    return record | ({} if captions is None else equal_caption_record(*correspondence, captions, ranks))


def captions_embedded(pairs: PairEmbeddings, dataset: Dataset) -> list[str]:
    """The captions in the order of the embeddings, without those of broken images."""
    of_rows = dataset.with_format(None)[CAPTIONS][:]
    return [caption for row in pairs.image_rows.tolist() for caption in of_rows[row]]


def data_fingerprint(dataset: Dataset) -> str:
    plain = dataset.with_format(None)
    return fingerprint(plain[IMAGE_ID][:], plain[CAPTIONS][:])


def table_rows(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, float]]:
    """The lines of `recall_table` for records of splits or of models, by their names: metrics, then chance.

    Every split has its own chance; it stands once where it is the same for all.
    """
    rows = {
        f"{name}{words}": record[f"metrics{kind}"]
        for name, record in records.items()
        for kind, words in KINDS.items()
        if f"metrics{kind}" in record
    }
    for kind, words in KINDS.items():
        found = {name: record[f"chance{kind}"] for name, record in records.items() if f"chance{kind}" in record}
        same = all(each == next(iter(found.values())) for each in found.values())
        rows |= {f"chance{words}" if same else f"chance, {name}{words}": each for name, each in found.items()}
    return rows


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
