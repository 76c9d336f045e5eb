"""Galleries from shards: by one process or several, killed or not, in every store."""

import io
import json
import os
import shutil
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn

from hf_vse.cli.main import main
from hf_vse.data.shards import expanded, find_shards, read_shard
from hf_vse.search import claims
from hf_vse.search.locations import open_store
from hf_vse.search.pictures import find_images
from hf_vse.search.shards import ShardParts, index_shards
from tests.data.test_sources import shard
from tests.search.plain import PlainEncoder

SHARDS, EACH = 4, 5
MEAN = """
import numpy as np
from hf_vse import Encoder

class Mean(Encoder):
    def encode_images(self, images):
        return np.stack([np.asarray(image, float).ravel() - 99 for image in images])
    def encode_texts(self, texts):
        return np.ones((len(texts), 48))
"""


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    with io.BytesIO() as file:
        PIL.Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


def samples(first: int, count: int = EACH) -> dict[str, dict[str, bytes]]:
    said = [json.dumps({"captions": [f"photograph {row}"], "year": 2000 + row}) for row in range(first, first + count)]
    return {f"{first + at:03d}": {"png": picture(first + at), "json": each.encode()} for at, each in enumerate(said)}


@pytest.fixture
def photographs(tmp_path) -> Path:
    for number in range(SHARDS):
        shard(tmp_path / "photographs" / f"{number:02d}.tar", samples(number * EACH))
    return tmp_path / "photographs"


def index(photographs: Path, location: Path | str, encoder: PlainEncoder, pattern: str = "{00..03}.tar", **options):
    parts = options.pop("parts", photographs.parent / "parts")
    index_shards(find_shards(f"{photographs}/{pattern}"), encoder, location, parts, progress=False, **options)
    return open_store(location)


def test_shards_become_a_gallery_in_every_store(location, photographs):
    encoder = PlainEncoder()
    store = index(photographs, location, encoder, batch_size=2)
    assert (len(store), encoder.seen, store.facts["broken"]) == (SHARDS * EACH, SHARDS * EACH, [])
    [(rows, embeds)] = list(store.rows())
    files = {row.item["file"]: at for at, row in enumerate(rows)}
    assert rows[files["02.tar/012.png"]].item == {
        "file": "02.tar/012.png",
        "year": 2012,
        "captions": ["photograph 12"],
    }
    vector = encoder.query(None, PIL.Image.open(io.BytesIO(picture(12))))
    np.testing.assert_allclose(embeds[files["02.tar/012.png"]], vector[0], atol=1e-6)
    scores, [[best]] = store.search(vector, 1, encoder, where=["year>=2010"])
    assert best["year"] == 2012 and scores[0, 0] == pytest.approx(1, abs=1e-4)
    [image] = find_images(store, [best])
    assert image.tobytes() == PIL.Image.open(io.BytesIO(picture(12))).tobytes()

    before = encoder.seen
    shard(photographs / "01.tar", samples(500, 3))  # another, smaller one
    (photographs / "03.tar").unlink()
    store = index(photographs, location, encoder, "{00..02}.tar")
    assert (len(store), encoder.seen - before) == (2 * EACH + 3, 3)
    found = {row.item["year"] for rows, _ in store.rows() for row in rows}
    assert found == {*range(2000, 2005), *range(2500, 2503), *range(2010, 2015)}


class Dying(PlainEncoder):
    """Ends its process as `kill -9` does when it has seen so many images, or waits until another has died."""

    def __init__(self, after: int | None, log: Path):
        super().__init__()
        self.after, self.log = after, log

    def encode_images(self, images):
        made = super().encode_images(images)
        while self.after is None and not self.log.with_name("died").exists():
            time.sleep(0.005)
        if self.after is not None and self.seen > self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.log.open("a") as log:
            log.write(f"{os.getpid()} {len(images)}\n")
        return made


def started(work) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def test_two_processes_of_which_one_is_killed_make_what_one_makes(photographs, tmp_path):
    one = index(photographs, tmp_path / "one", PlainEncoder(), batch_size=2).gallery
    log, parts = tmp_path / "log", tmp_path / "of_two"
    children = [
        started(lambda after=after: index(photographs, tmp_path / "two", Dying(after, log), batch_size=2, parts=parts))
        for after in (EACH + 2, None)
    ]
    for child, code in zip(children, (-signal.SIGKILL, 0), strict=True):
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
        (tmp_path / "died").touch()
    counts: dict[int, int] = {}
    for line in log.read_text().splitlines():
        process, images = map(int, line.split())
        counts[process] = counts.get(process, 0) + images
    assert list(map(counts.get, children)) == [EACH + 2, (SHARDS - 1) * EACH]  # what died with a half shard is redone
    two = open_store(tmp_path / "two").gallery
    assert list(two.items) == list(one.items) and len(two) == SHARDS * EACH
    np.testing.assert_array_equal(two.embeds, one.embeds)
    assert [path.suffix for path in parts.rglob("*") if path.is_file()].count(".claim") == 0
    assert len(list(parts.rglob("*.arrow"))) == SHARDS


def test_a_claim_is_lost_when_nobody_touches_it(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", 0.05)
    first, second = claims.Claims(tmp_path), claims.Claims(tmp_path)
    second.owner = "another machine 1"
    path = second.path("a")
    assert second.take("a") and path.read_text() == "another machine 1"
    assert not first.take("a")
    os.utime(path, (1, 1))
    time.sleep(0.06)
    assert not first.take("a"), "it was touched"
    time.sleep(0.06)
    assert first.take("a") and path.read_text() == first.owner
    path.write_text(f"{first.owner.rpartition(' ')[0]} {started(lambda: None)}")
    os.wait()
    assert first.take("a"), "its process has ended"
    monkeypatch.setattr(claims, "BEAT", 0.01)
    os.utime(path, (1, 1))
    with first.held("a"):
        time.sleep(0.05)
        assert path.stat().st_mtime > 1
    assert not path.exists()


def test_parquet_anywhere_and_columns_by_name(tmp_path):
    features = Features({"content": Value("binary"), "place": Value("string")})
    rows = {"content": [picture(row) for row in range(6)], "place": ["lake"] * 3 + [None] * 3}
    with fsspec.open("memory://photographs/a.parquet", "wb") as file:
        pq.write_table(Dataset.from_dict(rows, features=features).data.table, file, row_group_size=2)
    encoder, shards = PlainEncoder(), find_shards("memory://photographs/*.parquet")
    with pytest.raises(ValueError, match="no image column is recognised among the columns content, place"):
        index_shards(shards, encoder, tmp_path / "index", tmp_path / "parts", progress=False)
    options = {"image_column": "content", "caption_column": "place", "progress": False}
    index_shards(shards, encoder, tmp_path / "index", tmp_path / "parts", **options)
    items = open_store(tmp_path / "index").gallery.items
    assert items[1] == {"file": "a.parquet/1", "captions": ["lake"]} and items[5] == {"file": "a.parquet/5"}
    images = Features({"image": ImageColumn(decode=False)})
    for name, value in (("b", {"bytes": picture(7), "path": None}), ("c", {"bytes": None, "path": "/etc/passwd"})):
        Dataset.from_dict({"image": [value]}, features=images).to_parquet(tmp_path / f"{name}.parquet")
    index(tmp_path, tmp_path / "other", encoder, "b.parquet")
    store = open_store(tmp_path / "other")
    [image] = find_images(store, list(store.gallery.items))
    assert image.tobytes() == PIL.Image.open(io.BytesIO(picture(7))).tobytes()
    with pytest.raises(ValueError, match=r"c.parquet: column 'image' names '/etc/passwd' and holds no image"):
        list(read_shard(find_shards(f"{tmp_path}/c.parquet").shards[0]))


def test_broken_images_and_parts(photographs, tmp_path):
    shard(photographs / "01.tar", samples(5) | {"broken": {"png": b"no picture", "json": b"{}"}})
    with pytest.raises(ValueError, match="1 of 21 images are missing or broken .first: 01.tar/broken.png"):
        index(photographs, tmp_path / "index", PlainEncoder())
    encoder = PlainEncoder()
    store = index(photographs, tmp_path / "index", encoder, max_broken_share=0.1)
    assert (len(store), encoder.seen, store.facts["broken"]) == (20, 0, ["01.tar/broken.png"])
    part = next((tmp_path / "parts").rglob("*.arrow"))
    part.write_bytes(part.read_bytes()[:-9] + b"x" * 9)
    assert len(index(photographs, tmp_path / "index", encoder, max_broken_share=0.1)) == 20, "nothing is to do"
    with pytest.raises(ValueError, match="is damaged: remove it and repeat the command"):
        index(photographs, tmp_path / "second", encoder, max_broken_share=0.1)


def test_a_shard_that_changes_or_is_cut_is_refused(photographs, tmp_path):
    shards = find_shards(f"{photographs}/0[01].tar")
    assert [each.name for each in shards.shards] == ["00.tar", "01.tar"]
    parts = ShardParts(shards, PlainEncoder(), tmp_path / "parts")
    shutil.copy(photographs / "02.tar", photographs / "00.tar")
    with pytest.raises(ValueError, match="00.tar has changed since the command began"):
        parts.encode(next(iter(parts.shards)), PlainEncoder(), 4, 0, False)
    whole = (photographs / "01.tar").read_bytes()
    for size in (len(whole) // 2048 * 512, 700):
        (photographs / "01.tar").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="01.tar is cut: it does not end as an archive does"):
            list(read_shard(shards.shards[1]))


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("a{08..11}.tar", ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]),
        ("{a,b}/{1..2}.tar", ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]),
        ("a*.tar", ["a*.tar"]),
    ],
)
def test_braces(pattern, names):
    assert expanded(pattern) == names


def test_the_command(photographs, tmp_path, capsys):
    (tmp_path / "mean.py").write_text(MEAN)
    words = ["index", f"{photographs}/{{00..03}}.tar", str(tmp_path / "index"), "--model", f"{tmp_path}/mean.py:Mean"]
    assert main([*words, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == SHARDS * EACH
    assert (tmp_path / "index.parts").is_dir()
    for changed, line in (
        ({1: f"{photographs}/{{00..09}}.tar"}, "6 of 10 shards are missing, the first is "),
        ({1: f"{photographs}/9*.tar"}, "no shard is there"),
        ({1: f"{photographs}/{{00}}.tar"}, "{00} stands for nothing"),
        ({1: f"{photographs}/{{00..03.tar"}, "has an unmatched brace"),
        ({2: "milvus://host/name"}, "--parts is missing"),
        ({1: str(photographs), 5: "--parts=x"}, "--parts goes with shards"),
    ):
        asked = [changed.get(at, word) for at, word in enumerate(words)] + ([changed[5]] if 5 in changed else [])
        assert main([*asked, "--quiet"]) in (1, 2)
        assert line in capsys.readouterr().err
