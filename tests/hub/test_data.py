"""Publishing data: what is refused before the first request."""

from functools import partial

import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Image
from tqdm.auto import tqdm

from hf_vse.data.sources import load_pairs
from hf_vse.hub import data
from hf_vse.hub.data import check_links, push_data, without_broken_images
from tests.conftest import make_pairs


@pytest.fixture(autouse=True)
def no_requests(monkeypatch):
    def asked(*_, **__):
        raise AssertionError("a request was made")

    monkeypatch.setattr(data, "HfApi", asked)


def photographs(folder, names=("0.png", "1.png")):
    """A folder with metadata, and a picture outside of it."""
    (folder / "photos").mkdir()
    PIL.Image.new("RGB", (8, 8)).save(folder / "private.png")
    lines = []
    for name in names:
        PIL.Image.new("RGB", (8, 8)).save(folder / "photos" / name)
        lines.append(f'{{"file_name": "{name}", "captions": ["a"]}}')
    (folder / "photos" / "metadata.jsonl").write_text("\n".join(lines))
    return folder / "photos"


@pytest.mark.parametrize("by_folder", [False, True])
def test_links_out_of_the_folder_are_not_published(tmp_path, by_folder):
    folder = photographs(tmp_path)
    if by_folder:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "private.png").rename(tmp_path / "elsewhere" / "2.png")
        (folder / "more").symlink_to(tmp_path / "elsewhere")
        more = "more/2.png"
    else:
        (folder / "2.png").symlink_to(tmp_path / "private.png")
        more = "2.png"
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(f'\n{{"file_name": "{more}", "captions": ["b"]}}')
    pairs = load_pairs("imagefolder", data_dir=folder, cache_dir=tmp_path / "cache")
    assert len(pairs["train"]) == 3  # to train on one's own links is one's own affair
    with pytest.raises(
        ValueError, match=r"split 'train': .*2.png is a link to .*, outside of .*photos: put a copy there"
    ):
        push_data(pairs, "org/pairs")


def test_links_within_a_folder_and_a_linked_folder_are_fine(tmp_path):
    folder = photographs(tmp_path)
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to("0.png")
    (tmp_path / "linked").symlink_to(folder)
    for place in (folder, tmp_path / "linked"):
        pairs = load_pairs("imagefolder", data_dir=place, cache_dir=tmp_path / "cache")
        check_links("train", pairs["train"])


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (DatasetDict(), "there is no split to publish"),
        (DatasetDict(train=Dataset.from_dict({"text": ["a"]})), "has the columns text: load it with load_pairs"),
        (DatasetDict(train=Dataset.from_dict({"image_features": [], "captions": [], "image_id": []})), "is empty"),
    ],
)
def test_what_is_no_data_set_is_refused(splits, message):
    with pytest.raises(ValueError, match=message):
        push_data(splits, "org/pairs")


def test_a_stream_is_refused(tmp_path):
    pairs = load_pairs("imagefolder", data_dir=photographs(tmp_path), cache_dir=tmp_path / "cache", streaming=True)
    with pytest.raises(ValueError, match="split 'train' is a stream: load it with streaming=False"):
        push_data(pairs, "org/pairs")


def test_rows_are_counted_where_bars_are_switched_off(monkeypatch):
    """`--quiet` does so; the count of such a bar stays at 0."""
    monkeypatch.setattr("hf_vse.hub.data.tqdm", partial(tqdm, disable=True))
    split = make_pairs(5).cast_column("image", Image(decode=False))
    broken = split.map(
        lambda row, n: row | {"image": {"bytes": b"broken" if n == 1 else row["image"]["bytes"], "path": None}},
        with_indices=True,
    ).cast_column("image", Image())
    kept, count = without_broken_images("train", broken)
    assert count == 1 and kept["image_id"][:] == [0, 2, 3, 4]
