"""Recalls by the values of a field, against counting queries one by one."""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file

from hf_vse.cli.main import main
from hf_vse.evaluation.by_field import check_fields_asked, recalls_by_field
from hf_vse.evaluation.metrics import retrieval_metrics, retrieval_ranks
from tests.conftest import make_pairs

IMAGES = 60


def field_pairs() -> Dataset:
    """Pairs with two captions an image: 25 values of `number`, some images without a `place`, several `tags`."""
    pairs = make_pairs(IMAGES, size=4, captions=2)
    pairs = pairs.add_column("number", [min(row, 24) for row in range(IMAGES)])
    pairs = pairs.add_column("place", [("Rome", " Rome", "Oslo\n<b>", None)[row % 4] for row in range(IMAGES)])
    return pairs.add_column("tags", [["a", "b", "a"][: row % 4] for row in range(IMAGES)])


def embeddings() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(IMAGES).repeat_interleave(2)
    images = torch.nn.functional.normalize(torch.randn(IMAGES, 8, generator=generator), dim=1)
    texts = images[owner] + torch.randn(2 * IMAGES, 8, generator=generator)
    return images, torch.nn.functional.normalize(texts, dim=1), owner


def counted(asked: list[int]) -> dict[str, float]:
    """Recalls of some images and their captions, by going down every ranking."""
    images, texts, owner = embeddings()
    scores = images @ texts.T
    found = {}
    for level in (1, 5, 10):
        hits = [any(owner[j] == i for j in scores[i].topk(level).indices) for i in asked]
        found[f"i2t_r{level}"] = 100 * sum(hits) / len(hits)
        queries = [j for j in range(len(texts)) if owner[j] in asked]
        hits = [owner[j] in scores[:, j].topk(level).indices for j in queries]
        found[f"t2i_r{level}"] = 100 * sum(hits) / len(hits)
    return found


def test_recalls_of_values_are_those_of_their_queries_among_all_candidates():
    images, texts, owner = embeddings()
    ranks = retrieval_ranks(images, texts, owner)
    pairs = field_pairs()
    by_place, by_tag, by_number = (
        recalls_by_field(pairs, field, torch.arange(IMAGES), owner, ranks) for field in ("place", "tags", "number")
    )
    asked = {"Rome": [n for n in range(IMAGES) if n % 4 < 2], "Oslo <b>": [*range(2, IMAGES, 4)]}
    asked["no value"] = [*range(3, IMAGES, 4)]
    tags = {"a": [n for n in range(IMAGES) if n % 4], "b": [n for n in range(IMAGES) if n % 4 > 1]}
    tags["no value"] = [*range(0, IMAGES, 4)]
    numbers = {"24": [*range(24, IMAGES)]} | {str(n): [n] for n in sorted(range(24), key=str)[:19]}
    numbers["other"] = sorted(sorted(range(24), key=str)[19:])
    for rows, expected in ((by_place, asked), (by_tag, tags), (by_number, numbers)):
        assert [row["value"] for row in rows] == list(expected)
        for row, group in zip(rows, expected.values(), strict=True):
            assert (row["images"], row["captions"]) == (len(group), 2 * len(group))
            assert {name: row["metrics"][name] for name in counted(group)} == pytest.approx(counted(group)), row[
                "value"
            ]
    assert by_number[-1]["joined"] == 5 and "joined" not in by_number[0]


def test_rows_without_embeddings_are_left_out():
    images, texts, owner = embeddings()
    kept = torch.tensor([n for n in range(IMAGES) if n % 3])
    mine = torch.isin(owner, kept)
    index = torch.searchsorted(kept, owner[mine])
    ranks = retrieval_ranks(images[kept], texts[mine], index)
    found = recalls_by_field(field_pairs(), "number", kept, index, ranks)
    assert sum(row["images"] for row in found) == 40 and found[0]["images"] == sum(
        n % 3 > 0 for n in range(24, IMAGES)
    )


def test_a_command_tells_recalls_by_fields_in_record_table_and_page(capsys, tmp_path):
    images, texts, owner = embeddings()
    DatasetDict({"test": field_pairs()}).save_to_disk(str(tmp_path / "pairs"))
    save_file({"image_embeds": images, "text_embeds": texts, "text_to_image": owner}, tmp_path / "mine.safetensors")
    asked = ["evaluate", str(tmp_path / "mine.safetensors"), "--output", str(tmp_path / "numbers.json"), "--quiet"]
    data = ["--dataset", str(tmp_path / "pairs")]
    report = ["--report", str(tmp_path / "report")]
    assert main([*asked, *data, *report, "--by", "place", "--by", "number"]) == 0
    said = capsys.readouterr().out
    [record] = json.loads((tmp_path / "numbers.json").read_text())["metrics"].values()
    ranks = retrieval_ranks(images, texts, owner)
    assert record["by_field"]["place"] == recalls_by_field(field_pairs(), "place", torch.arange(IMAGES), owner, ranks)
    assert record["metrics"] == retrieval_metrics(images, texts, owner)
    assert "by place, each query among all images and captions" in said and "other (5 values), 5 images" in said
    rome = record["by_field"]["place"][0]["metrics"]
    assert f"Rome, 30 images{rome['i2t_r1']:13.1f}".split() in [line.split()[:4] for line in said.splitlines()]
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "By place" in page and "Oslo &lt;b&gt;" in page and f"<td>{rome['rsum']:.1f}</td>" in page
    assert main([*asked, *data, "--by", "colour"]) == 1
    assert "by 'colour': the data have no such field; there are number, place, tags" in capsys.readouterr().err
    assert main([*asked, "--by", "place"]) == 1
    assert "--by has no effect" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no such field; they have none"):
        check_fields_asked(make_pairs(2, size=4), ["captions"])
