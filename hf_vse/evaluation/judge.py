"""Judges a model on one split: recalls under every protocol, their intervals, and the reasons.

    from hf_vse import judge, load_encoder, load_pairs
    test = load_pairs("flickr30k", data_dir=DIR)["test"]
    record = judge(load_encoder("openai/clip-vit-base-patch32"), test, source="flickr30k", split="test").record

The model is anything that `load_encoder` opens, or an `Encoder` of your own; `judge_embeddings` takes
embeddings in place of a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor

from hf_vse.data.groups import group_counts, plain_column
from hf_vse.data.official import OFFICIAL_DIGESTS, split_digests
from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, GROUP_ID, IMAGE_ID, data_fingerprint
from hf_vse.embed.encoder import Encoder
from hf_vse.evaluation.diagnostics.diagnose import diagnose
from hf_vse.evaluation.equal_captions import equal_caption_record
from hf_vse.evaluation.evaluator import PairEmbeddings, embed_pairs
from hf_vse.evaluation.intervals import compare_models, holm, recall_intervals
from hf_vse.evaluation.metrics import chance_recalls, summarize_ranks
from hf_vse.evaluation.protocols import protocol_results
from hf_vse.evaluation.ranks import distributed_ranks
from hf_vse.evaluation.record import plain_record


@dataclass
class Texts:
    """Captions and ids of the rows of `PairEmbeddings`; None if not known."""

    captions: list[str] | None = None
    image_ids: list[int] | None = None
    caption_ids: list[int] | None = None


@dataclass
class Judgement:
    """`record` is JSON as it stands, see `record.py`; the rest is what pictures and comparisons need."""

    record: dict[str, Any]
    pairs: PairEmbeddings
    texts: Texts
    ranks: tuple[Tensor, Tensor]


def texts_of(dataset: Dataset, pairs: PairEmbeddings) -> Texts:
    """Captions and ids in the order of the embeddings, without those of broken images."""
    rows = pairs.image_rows.tolist()
    plain = dataset.with_format(None)
    captions, image_ids, caption_ids = plain[CAPTIONS][:], plain[IMAGE_ID][:], plain[CAPTION_IDS][:]
    return Texts(
        [caption for row in rows for caption in captions[row]],
        [image_ids[row] for row in rows],
        [number for row in rows for number in caption_ids[row]],
    )


def judge(
    encoder: Encoder,
    dataset: Dataset,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
    progress: bool = True,
    keep: Path | None = None,
    **asked: Any,
) -> Judgement:
    """Judges a model on one split as `load_pairs` returns it; several processes share the encoding.

    Args:
        keep: see `embed_pairs`.
        asked: `source`, `split`, `diagnostics`, `train_captions`, see `judge_embeddings`.

    Returns:
        The whole record on the main process, and recalls and ranks on the others.
    """
    reading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    pairs = embed_pairs(encoder, dataset, keep=keep, **reading)
    texts = texts_of(dataset, pairs)
    return judge_embeddings(pairs, texts, dataset, name=encoder.name, facts=encoder.facts(), **asked)


def judge_embeddings(
    pairs: PairEmbeddings,
    texts: Texts,
    dataset: Dataset | None = None,
    *,
    name: str,
    facts: Mapping[str, Any],
    source: str = "",
    split: str = "",
    diagnostics: bool = False,
    train_captions: Sequence[str] | None = None,
) -> Judgement:
    """Judges embeddings; see `judge`.

    Args:
        name: of the model; facts: what a reader of the record should know of it, see `Encoder.facts`.
        source, split: the names of data set and split, which decide which protocols apply.
        diagnostics: also look for the reasons, see `hf_vse.evaluation.diagnostics`.
        train_captions: what word frequencies are counted in; default: the captions of the split.
    """
    correspondence = pairs.image_embeds, pairs.text_embeds, pairs.text_to_image
    ranks = distributed_ranks(*correspondence)
    images, captions = len(pairs.image_embeds), len(pairs.text_embeds)
    digests = None
    if texts.captions is not None and (source, split) in OFFICIAL_DIGESTS:
        owners = pairs.text_to_image.numpy()
        digests = split_digests(texts.captions, owners, texts.image_ids, texts.caption_ids)
    record = plain_record(
        summarize_ranks(*ranks),
        chance_recalls(images, captions, pairs.text_to_image.bincount().tolist()),
        images=images,
        captions=captions,
        broken_images=pairs.broken,
        source=source,
        split=split,
        model=name,
        facts=facts,
        fingerprint=None if dataset is None else data_fingerprint(dataset),
        digests=digests,
    )
    judgement = Judgement(record, pairs, texts, ranks)
    if not PartialState().is_main_process:
        return judgement
    if texts.captions is not None:
        record |= equal_caption_record(*correspondence, texts.captions, ranks)
    record["intervals"] = recall_intervals(*ranks, pairs.text_to_image)
    ids: dict[str, Any] = {"image_ids": texts.image_ids, "caption_ids": texts.caption_ids}
    record["protocols"] = protocol_results(
        *correspondence, source=source, split=split, broken=pairs.broken, digests=digests, ranks=ranks, **ids
    )
    if "folds_1k" in record["protocols"]:
        record["metrics_1k_folds"] = record["protocols"]["folds_1k"]["metrics"]
    if dataset is not None and GROUP_ID in dataset.column_names:
        record["groups"] = group_counts(plain_column(dataset, GROUP_ID))
    if diagnostics:
        known: dict[str, Any] = {"train_captions": train_captions, "temperature": facts.get("temperature")}
        record["diagnostics"] = diagnose(*correspondence, texts.captions, ranks=ranks, **known)
    return judgement


def compare_judgements(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Compares every two of several models on the same images.

    Of many comparisons some are significant by chance: `adjusted_p_value` is the p-value after Holm's correction for
    the number of pairs of models, for each metric.

    Raises:
        ValueError: they were judged on different pairs.
    """
    results = []
    for place, first in enumerate(judgements):
        for second in judgements[place + 1 :]:
            same = first.record["fingerprint"] == second.record["fingerprint"]
            if not same or not torch.equal(first.pairs.text_to_image, second.pairs.text_to_image):
                names = f"{first.record['model']} and {second.record['model']}"
                raise ValueError(
                    f"{names} were judged on different images or captions; only results on the same are compared"
                )
            tested = compare_models(first.ranks, second.ranks, first.pairs.text_to_image)
            results.append({"first": first.record["model"], "second": second.record["model"], "metrics": tested})
    for name in results[0]["metrics"] if results else ():
        adjusted = holm({place: each["metrics"][name]["p_value"] for place, each in enumerate(results)})
        for place, each in enumerate(results):
            each["metrics"][name]["adjusted_p_value"] = adjusted[place]
    return results
