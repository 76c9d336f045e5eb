"""Recall lost by compressing the vectors of a gallery: fewer dimensions, fewer bytes, and both.

    python scripts/benchmarks/compression.py --model runs/quickstart [--output compression.json]
    python scripts/benchmarks/compression.py --model DIR --dataset flickr8k --data_dir DIR --split validation

The model embeds a split once. Then every combination of dimensions and precision is measured, with the principal
components of the gallery (`rotated`) and with its first dimensions (`truncated`). The gallery is the images for text
to image, and the texts for image to text. Each compression is fitted on the gallery, never on the queries, which stay
in float32. The baseline is the first line: all dimensions in float32.
"""

import argparse
from pathlib import Path

import torch
from measuring import record

from hf_vse.data.schema import data_fingerprint
from hf_vse.data.spec import DataSpec
from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.evaluator import PairEmbeddings, embed_pairs
from hf_vse.evaluation.metrics import RECALL_LEVELS, retrieval_metrics
from hf_vse.search.compression import BITS, Compression

SHARES = (1, 2, 4, 8)


def recalls(pairs: PairEmbeddings, dim: int, precision: str, rotate: bool) -> dict[str, float]:
    """The six recalls; in each direction only the gallery is compressed."""
    images, texts = pairs.image_embeds.numpy(), pairs.text_embeds.numpy()
    found = {}
    for direction, gallery, queries in (("i2t", texts, images), ("t2i", images, texts)):
        compression = Compression.fit(gallery, dim, precision, rotate=rotate)
        stored, asked = compression.decode(compression.encode(gallery)), compression.project(queries)
        sides = (asked, stored) if direction == "i2t" else (stored, asked)
        metrics = retrieval_metrics(*sides, pairs.text_to_image)
        found |= {f"{direction}_r{level}": round(metrics[f"{direction}_r{level}"], 2) for level in RECALL_LEVELS}
    return found | {"rsum": round(sum(found.values()), 2), "bytes": compression.bytes_per_vector}


def compare(pairs: PairEmbeddings) -> list[dict]:
    full = pairs.image_embeds.shape[1]
    rows = []
    for share in SHARES:
        for precision in BITS:
            for way in ("rotated", "truncated"):
                row = {"dim": full // share, "precision": precision, "way": way}
                rows.append(row | recalls(pairs, full // share, precision, rotate=way == "rotated"))
    return rows


def embed_split(arguments: argparse.Namespace) -> tuple[PairEmbeddings, dict]:
    given = {"data_dir": arguments.data_dir, "features": arguments.features}
    spec = DataSpec.of_model(arguments.model, arguments.dataset, arguments.split, **given)
    split = spec.load_split()
    with torch.no_grad():
        pairs = embed_pairs(load_encoder(arguments.model, device="cpu"), split, progress=False)
    return pairs, {
        "dataset": spec.source,
        "split": arguments.split,
        "images": len(pairs.image_embeds),
        "captions": len(pairs.text_embeds),
        "fingerprint": data_fingerprint(split),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--dataset", help="default: the data it was trained on")
    parser.add_argument("--data_dir", help="folder with the images and the captions file; default: as in training")
    parser.add_argument("--features", help="array of features that replaces the images; default: as in training")
    parser.add_argument("--split", default="test", help="train, validation or test [test]")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    pairs, data = embed_split(arguments)
    result = {
        "what": "recall of compressed galleries, each fitted on the gallery itself; queries in float32",
        "model": Path(arguments.model).name,
        "data": data,
        "rows": compare(pairs),
        "environment": environment(),
    }
    record(result, arguments.output)


if __name__ == "__main__":
    main()
