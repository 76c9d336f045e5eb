"""What the models find and what they miss: rows of the page that show photographs beside sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from hf_vse.data.decoding import BrokenImageError, decode_image
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import IMAGE
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.relevance import relevance, why_no_cells
from hf_vse.evaluation.judge import Judgement
from hf_vse.plots.overlay import draw_relevance
from hf_vse.report.thumbnails import Thumbnails, address_of

QUERIES = 8  # sentences, evenly spread over the split
FOUND = 6  # images for each of them
IMAGES = 4
CAPTIONS = 5
WORST = 8
LIT = 4  # sentences whose own image is lit
LIT_SIDE = 288  # pixels

Row = dict[str, Any]
Judgements = Mapping[str, Judgement]


def evenly_spaced(total: int, count: int) -> list[int]:
    """`count` of `total` rows, evenly spaced, independent of the model."""
    return sorted({place * total // count for place in range(count)})


def captions_judged(judgement: Judgement) -> list[str]:
    """The captions of a judged split; vectors alone have none, and no page."""
    assert judgement.texts.captions is not None
    return judgement.texts.captions


def shown_image(
    judgement: Judgement, thumbnails: Thumbnails, image: int, right: bool = False, score: float | None = None
) -> Row:
    """An image of the embeddings as the page shows it."""
    row = judgement.pairs.image_rows[image].item()
    return {"src": thumbnails.of(row), "row": row, "right": right, "score": score}


def sentence_examples(judgements: Judgements, thumbnails: Thumbnails) -> list[Row]:
    """For some sentences the images that each model ranks first."""
    first = next(iter(judgements.values()))
    return [
        {
            "sentence": captions_judged(first)[text],
            "own": shown_image(first, thumbnails, int(first.pairs.text_to_image[text])),
            "models": {name: found_images(judgement, thumbnails, text) for name, judgement in judgements.items()},
        }
        for text in evenly_spaced(len(captions_judged(first)), QUERIES)
    ]


def found_images(judgement: Judgement, thumbnails: Thumbnails, text: int) -> Row:
    pairs = judgement.pairs
    best = (pairs.image_embeds @ pairs.text_embeds[text]).topk(min(FOUND, len(pairs.image_embeds)))
    own = pairs.text_to_image[text].item()
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return {
        "rank": judgement.ranks[1][text].item() + 1,
        "found": [shown_image(judgement, thumbnails, image, image == own, score) for image, score in found],
    }


def lit_examples(judgements: Judgements, encoders: Mapping[str, Encoder], images: Dataset) -> list[Row]:
    """For some sentences their own image, with light on what speaks for the sentence in each model that shows it."""
    showing = {name: each for name, each in encoders.items() if why_no_cells(getattr(each, "model", None)) is None}
    first, undecoded, found = next(iter(judgements.values())), undecoded_images(images), []
    for text in evenly_spaced(len(captions_judged(first)), QUERIES)[:: QUERIES // LIT] if showing else []:
        row = first.pairs.image_rows[first.pairs.text_to_image[text]].item()
        try:
            image = decode_image(undecoded[row][IMAGE], needed=LIT_SIDE)
        except BrokenImageError:
            continue
        sentence = captions_judged(first)[text]
        answers = {name: relevance(each, image, sentence) for name, each in showing.items()}
        lit = {
            name: {"src": address_of(draw_relevance(image, each.cells, each.box, LIT_SIDE)), "row": row}
            for name, each in answers.items()
        }
        found.append({"sentence": sentence, "plain": {"src": address_of(image, LIT_SIDE), "row": row}, "models": lit})
    return found


def image_examples(judgements: Judgements, thumbnails: Thumbnails) -> list[Row]:
    """For some images the sentences that each model ranks first."""
    first = next(iter(judgements.values()))
    return [
        {
            "image": shown_image(first, thumbnails, image),
            "models": {name: found_texts(judgement, image) for name, judgement in judgements.items()},
        }
        for image in evenly_spaced(len(first.pairs.image_embeds), IMAGES)
    ]


def found_texts(judgement: Judgement, image: int) -> Row:
    pairs = judgement.pairs
    best = (pairs.text_embeds @ pairs.image_embeds[image]).topk(min(CAPTIONS, len(pairs.text_embeds)))
    return {
        "rank": judgement.ranks[0][image].item() + 1,
        "found": [
            {"sentence": captions_judged(judgement)[text], "right": owner == image, "score": score}
            for text, owner, score in zip(
                best.indices.tolist(), pairs.text_to_image[best.indices].tolist(), best.values.tolist(), strict=True
            )
        ],
    }


def failures(judgement: Judgement, thumbnails: Thumbnails) -> Row:
    """The worst queries, doubtful pairs and double images that the diagnostics name."""
    suspects = judgement.record["diagnostics"]["suspects"]
    captions = captions_judged(judgement)
    return {
        "worst": [
            {
                "sentence": captions[row["text"]],
                "rank": row["rank"],
                "own": shown_image(judgement, thumbnails, row["image"], True, row["own_score"]),
                "found": [
                    shown_image(judgement, thumbnails, image, False, score)
                    for image, score in list(zip(row["found"], row["found_scores"], strict=True))[:FOUND]
                ],
            }
            for row in suspects["worst_texts"][:WORST]
        ],
        "doubtful": [
            {
                "sentence": captions[row["text"]],
                "rationale": row["rationale"],
                "own": shown_image(judgement, thumbnails, row["image"], True, row["own_score"]),
                "found": [shown_image(judgement, thumbnails, row["found"], False, row["found_score"])],
                "siblings": siblings(judgement, row["image"], row["text"]),
            }
            for row in suspects["annotation_errors"]["rows"][:WORST]
        ],
        "note": suspects["annotation_errors"]["note"],
        "double": [
            {"score": row["score"], "found": [shown_image(judgement, thumbnails, image) for image in row["images"]]}
            for row in suspects["near_duplicate_images"]["rows"][:WORST]
        ],
        "threshold": suspects["near_duplicate_images"]["threshold"],
        "pairs": suspects["near_duplicate_images"]["pairs"],
    }


def siblings(judgement: Judgement, image: int, text: int) -> list[str]:
    """The other captions of an image."""
    rows = (judgement.pairs.text_to_image == image).nonzero()[:, 0].tolist()
    return [captions_judged(judgement)[row] for row in rows if row != text]


def hubs(judgement: Judgement, thumbnails: Thumbnails) -> list[Row]:
    """The images that stand among the first ten of the most sentences."""
    largest: Sequence[Row] = judgement.record["diagnostics"]["hubness"]["t2i"]["k10"]["largest"][:WORST]
    return [shown_image(judgement, thumbnails, each["row"]) | {"occurrences": each["occurrences"]} for each in largest]


def expected_occurrences(judgement: Judgement) -> float:
    """How often an image would be among the first ten if all were so equally often."""
    found = judgement.record["diagnostics"]["hubness"]["t2i"]["k10"]
    return found["k"] * found["queries"] / found["candidates"]
