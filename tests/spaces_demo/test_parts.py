"""Limits, settings, sources and the cache of the demo, without a server."""

import ast
import io
import json
import re
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset

from tests.spaces_demo.conftest import DEMO, PHOTOGRAPHS, png

pytest.importorskip("gradio")
pytest.importorskip("faiss")

import app  # noqa: E402
import gradio as gr  # noqa: E402
from about import recalls  # noqa: E402
from encoder import PublishedModel  # noqa: E402
from gallery import open_galleries  # noqa: E402
from handlers import Handlers  # noqa: E402
from limits import MAX_PICTURES, RefusedError, read_image, read_labels, read_sentence, read_template  # noqa: E402
from photographs import Source  # noqa: E402
from search import Search  # noqa: E402
from settings import Settings, SettingsError  # noqa: E402
from visitors import SECONDS_TO_KEEP, Picture, Visitors  # noqa: E402

ALLOWED = {"torch", "numpy", "PIL", "transformers", "datasets", "gradio", "faiss", "huggingface_hub", "safetensors"}


@pytest.mark.parametrize("path", sorted(DEMO.glob("*.py")), ids=lambda path: path.name)
def test_demo_imports_no_hf_vse(path):
    """Everything else is a sibling: the demo stands alone and sees the model through transformers only."""
    allowed = ALLOWED | sys.stdlib_module_names | {each.stem for each in DEMO.glob("*.py")}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in allowed, name


@pytest.mark.parametrize("name", ["embed/relevance.py", "plots/overlay.py"])
def test_the_page_carries_the_same_files(name):
    assert (DEMO / name.split("/")[1]).read_bytes() == (DEMO.parent / "hf_vse" / name).read_bytes()


def bomb() -> bytes:
    """A PNG of some bytes that declares 60,000 x 60,000 pixels."""
    chunks = b""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def truncated() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return png(PIL.Image.fromarray(noise))[:2000]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(), "at most 40 million"),
        (b"GIF89a and then nothing", "try a JPEG"),
        (b"", "try a JPEG"),
        (truncated(), "try a JPEG"),
        (b"\xff" * (10 * 2**20 + 1), "at most 10 MB"),
    ],
    ids=["bomb", "broken", "empty", "truncated", "large"],
)
def test_read_image_refuses_in_one_line(data, message):
    with pytest.raises(RefusedError, match=message) as refused:
        read_image(data)
    assert "\n" not in str(refused.value)


def test_read_image_turns_upright():
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    PIL.Image.new("L", (20, 10)).save(file, "JPEG", exif=exif)
    image = read_image(file.getvalue())
    assert image.size == (10, 20) and image.mode == "RGB"


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_sentence, " \n ", "no sentence yet"),
        (read_sentence, "x" * 301, "at most 300"),
        (read_sentence, None, "too long"),
        (read_labels, "dog", "at least two"),
        (read_labels, "dog, , dog", "at least two"),
        (read_labels, ",".join(map(str, range(31))), "at most 30"),
        (read_labels, "dog," + "x" * 61, "at most 60"),
        (read_template, "a photo", "once"),
        (read_template, "{} and {}", "once"),
    ],
)
def test_texts_are_refused(reader, text, message):
    with pytest.raises(RefusedError, match=message):
        reader(text)


def test_texts_are_tidied():
    assert read_sentence("  a\n dog ") == "a dog"
    assert read_labels(" dog, cat,,dog,\nred  bird ") == ["dog", "cat", "red bird"]
    assert read_template("a {}.") == "a {}."


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"VSE_DATASET": "d"}, "VSE_MODEL is not set: give"),
        ({"VSE_MODEL": "m", "VSE_DATASET": " "}, "VSE_DATASET is not set: give"),
        ({"VSE_MODEL": "m", "VSE_DATASET": "d", "VSE_MAX_IMAGES": "many"}, "VSE_MAX_IMAGES='many'.*give"),
        ({"VSE_MODEL": "m", "VSE_DATASET": "d", "VSE_MAX_IMAGES": "0"}, "VSE_MAX_IMAGES='0'.*give"),
    ],
)
def test_settings_name_variable_and_remedy(environment, message):
    with pytest.raises(SettingsError, match=message):
        Settings.from_environment(environment)


def test_app_ends_with_one_line(monkeypatch):
    monkeypatch.delenv("VSE_MODEL", raising=False)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="^error: VSE_MODEL is not set: give the Hub id or the directory of a model$"):
        app.main()


def test_missing_model_and_data_are_one_line(tmp_path, parquet):
    with pytest.raises(SettingsError, match=r"VSE_MODEL='\S+/nothing' cannot be loaded .* give") as error:
        PublishedModel(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)
    with pytest.raises(SettingsError, match="VSE_DATASET='org/nothing' cannot be read .* give") as error:
        Source(Settings("m", "org/nothing"))
    assert "\n" not in str(error.value)
    Dataset.from_dict({"picture": [1], "captions": [["a"]]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(SettingsError, match="needs the columns image and captions; it has picture, captions"):
        next(iter(Source(Settings("m", str(tmp_path / "other.parquet")))))


def test_sources_agree(tmp_path, parquet, gallery_rows):
    """A parquet file, an image folder with one column for each caption, and a saved data set with a split."""
    folder = tmp_path / "folder" / "test"
    folder.mkdir(parents=True)
    lines = []
    for number, row in enumerate(gallery_rows):
        (folder / f"{number:02}.png").write_bytes(row["image"]["bytes"])
        captions = {f"caption_{place}": caption for place, caption in enumerate(row["captions"])}
        lines.append(json.dumps({"file_name": f"{number:02}.png"} | captions))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    saved = Dataset.from_parquet(str(parquet), cache_dir=str(tmp_path))
    saved.save_to_disk(tmp_path / "saved")
    found = {}
    for path in (parquet, folder.parent, tmp_path / "saved"):
        source = Source(Settings("m", str(path)))
        found[path] = [(png(each.image), each.captions) for each in source]
        assert source.broken == 1
    assert len(found[parquet]) == PHOTOGRAPHS and found[parquet][0][1] == gallery_rows[0]["captions"]
    assert found[parquet] == found[folder.parent] == found[tmp_path / "saved"]
    assert Source(Settings("m", str(folder.parent))).split == "test"
    with pytest.raises(SettingsError, match="VSE_SPLIT='train' is not in .*; it has test"):
        Source(Settings("m", str(folder.parent), split="train"))


def test_a_photograph_that_is_a_line_is_left_out(tmp_path):
    (tmp_path / "line.png").write_bytes(png(PIL.Image.new("L", (1, 60_000))))
    (tmp_path / "sound.png").write_bytes(png(PIL.Image.new("L", (30, 40))))
    lines = [json.dumps({"file_name": f"{name}.png", "caption": name}) for name in ("line", "sound")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    source = Source(Settings("m", str(tmp_path)))
    assert [each.captions for each in source] == [["sound"]] and source.broken == 1


def test_gallery_is_encoded_once(tmp_path, model_folder, parquet, monkeypatch):
    settings = Settings(str(model_folder), str(parquet), cache_dir=tmp_path)
    encoder = PublishedModel(settings.model)
    (first,) = open_galleries(Source(settings), [encoder], tmp_path)
    monkeypatch.setattr(PublishedModel, "encode_images", None)  # a second encoding would fail
    (second,) = open_galleries(Source(settings), [encoder], tmp_path)
    assert np.array_equal(first.image_embeds, second.image_embeds)
    assert first.album.thumbnails == second.album.thumbnails and first.album.captions == second.album.captions
    assert second.album.broken == 1 and len(second.album) == PHOTOGRAPHS
    monkeypatch.undo()
    fewer = Settings(str(model_folder), str(parquet), max_images=3)
    assert len(open_galleries(Source(fewer), [encoder], tmp_path)[0].album) == 3
    next(tmp_path.glob("embeds-*")).write_bytes(b"torn")
    assert len(open_galleries(Source(settings), [encoder], tmp_path)[0].album) == PHOTOGRAPHS


def test_the_model_runs_in_one_thread_whoever_asks(model_folder, monkeypatch):
    """Every thread that has run a model keeps memory for it."""
    encoder, threads = PublishedModel(str(model_folder)), []
    process = encoder._process
    monkeypatch.setattr(encoder, "_process", lambda **given: threads.append(get_ident()) or process(**given))
    with ThreadPoolExecutor(4) as visitors:
        image = PIL.Image.new("RGB", (32, 32))
        answers = list(visitors.map(lambda _: encoder.encode_images([image]), range(8)))
        list(visitors.map(lambda _: encoder.encode_sentences(["a red ring"]), range(8)))
    assert len(threads) == 16 and len(set(threads)) == 1
    assert all(np.array_equal(each, answers[0]) for each in answers)


def test_search_marks_own_photograph_and_merges_pictures(tmp_path, model_folder, parquet):
    settings = Settings(str(model_folder), str(parquet), cache_dir=tmp_path)
    gallery = open_galleries(Source(settings), [PublishedModel(settings.model)], tmp_path)[0]
    search = Search(gallery)
    sentence = gallery.album.captions[7][0]
    query = search.sentence(sentence)
    scores = gallery.image_embeds @ query
    own = [Picture(b"", query)]  # as near as can be
    hits = search.photographs(query, 48, own, sentence)
    assert hits[0].is_own and [hit.row for hit in hits[1:]] == np.argsort(-scores, kind="stable").tolist()
    assert [hit.row for hit in hits if hit.is_described] == [7]
    assert gallery.rank_of_own(query, sentence) == 1 + int((scores > scores[7]).sum())
    assert len(search.photographs(query, 1e9)) == PHOTOGRAPHS
    with pytest.raises(RefusedError, match="must be a number"):
        search.photographs(query, float("nan"))
    assert "red" not in search.note("a zebra, red", query) and "zebra" in search.note("a zebra, red", query)
    lit, found = search.why(sentence, gallery.album.thumbnails[7])
    assert lit.size == (32, 32) and found.cells.shape == (4, 4) and found.box == (0, 0, 32, 32)
    assert found.score == pytest.approx(scores[7], abs=0.03)  # of a thumbnail
    visitor, best = SimpleNamespace(session_hash="anna"), gallery.nearest_images(query, 3)
    shown = Handlers([search]).why(sentence, 12, 3, visitor)
    similarity = float(re.search(r"Photograph 3: similarity (-?[\d.]+);", shown)[1])
    assert similarity == pytest.approx(best[2][0], abs=0.03) and 'src="data:image/jpeg;base64,' in shown
    with pytest.raises(gr.Error, match="11 photographs were found: choose one of them"):
        Handlers([search]).why(sentence, 48, 40, visitor)


def test_visitors_are_apart_and_forgotten():
    now = [0.0]
    visitors = Visitors(clock=lambda: now[0])
    picture = Picture(b"jpeg", np.zeros(2, dtype=np.float32))
    visitors.add("anna", [picture])
    assert visitors.pictures("ben") == [] and len(visitors.pictures("anna")) == 1
    with pytest.raises(RefusedError, match=f"at most {MAX_PICTURES}"):
        visitors.add("anna", [picture] * MAX_PICTURES)
    assert visitors.forget("anna") == 1 and visitors.pictures("anna") == []
    visitors.add("ben", [picture])
    now[0] = SECONDS_TO_KEEP + 1.0
    assert visitors.pictures("ben") == []


def test_pictures_of_all_visitors_are_bounded(monkeypatch):
    monkeypatch.setattr("visitors.MAX_BYTES", 2500)
    visitors = Visitors()
    picture = Picture(b"x" * 1000, np.zeros(2, dtype=np.float32))
    for name in ("anna", "ben", "carl"):
        visitors.add(name, [picture])
    assert [len(visitors.pictures(name)) for name in ("anna", "ben", "carl")] == [0, 1, 1]
    assert len(visitors.add("anna", [picture] * 3)) == 3  # the newest are kept whatever they take


def test_recalls_come_from_metrics_or_model_card(tmp_path):
    assert recalls(str(tmp_path)) == {}
    card = {
        "model-index": [
            {
                "name": "vse",
                "results": [
                    {
                        "task": {"type": "image-text-retrieval"},
                        "dataset": {"name": "Flickr8k", "type": "flickr8k", "split": "test"},
                        "metrics": [{"type": "i2t_r1", "value": 31.5}, {"type": "other", "value": 1}],
                    }
                ],
            }
        ]
    }
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n# A model\n")
    assert recalls(str(tmp_path)) == {"Flickr8k test": {"i2t_r1": 31.5}}
    report = {"metrics": {"test": {"metrics": {"i2t_r1": 12.3, "i2t_medr": 4.0}}}}
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    assert recalls(str(tmp_path)) == {"test": {"i2t_r1": 12.3}}
