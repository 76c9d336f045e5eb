"""The store of computed rows: whole or absent, found again, continued, never stale, and equal to a plain loop."""

import io
import multiprocessing
import signal

import numpy as np
import PIL.Image
import pytest
import torch

from hf_vse.embed import store as module
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.embed.store import Store
from hf_vse.evaluation.evaluator import embed_pairs
from tests.conftest import make_pairs
from tests.faults.killing import names_of_points, points_to_try, run

TEXTS = [f"{'a ' * (number % 5)}dog number {number}" for number in range(11)]


class Letters(Encoder):
    """Sentences by their letters; a vector does not depend on the others of its batch."""

    name = digest = "letters"

    def __init__(self):
        self.seen: list[str] = []

    def encode_texts(self, texts):
        self.seen += texts
        return np.array([[text.count(letter) + 0.5 for letter in "aeiou1234"] for text in texts])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 4)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def plain_loop(texts: list[str]) -> torch.Tensor:
    vectors = [torch.as_tensor(Letters().encode_texts([text])[0]).float() for text in texts]
    return torch.stack([torch.nn.functional.normalize(vector, dim=0) for vector in vectors])


def encode(folder, texts=TEXTS) -> tuple[torch.Tensor, list[str]]:
    encoder = Letters()
    return encode_texts(encoder, texts, batch_size=2, store=Store(folder)), encoder.seen


def shards(folder) -> list:
    return sorted(folder.glob("[!.]*.arrow"))


@pytest.mark.parametrize("how", ["kill", "full"])
def test_interrupted_at_any_write_it_holds_whole_rows_and_goes_on(folder, how):
    expected = plain_loop(TEXTS)
    points = points_to_try(lambda: encode(folder), folder)
    assert sum("arrow" in name and name.startswith("os.rename") for name in names_of_points(folder)) == 3
    for at in points:
        for path in folder.iterdir():
            path.unlink()
        code = run(lambda: encode(folder), folder, at, how)
        assert code == (-signal.SIGKILL if how == "kill" else 70)
        there = Store(folder).index()
        found, seen = encode(folder)
        assert torch.equal(found, expected) and len(seen) == len(TEXTS) - len(there)
        again, seen = encode(folder)
        assert torch.equal(again, expected) and seen == []


def test_rows_are_those_of_a_plain_loop_to_the_last_bit(folder):
    expected = plain_loop(TEXTS)
    assert torch.equal(encode_texts(Letters(), TEXTS, batch_size=3), expected)
    assert torch.equal(encode(folder, TEXTS[:5])[0], expected[:5])
    found, seen = encode(folder, TEXTS[::-1])
    assert torch.equal(found, expected.flip(0)) and sorted(seen) == sorted(TEXTS[5:])
    assert torch.equal(encode(folder, [TEXTS[7]] * 3)[0], expected[[7, 7, 7]])


def test_kept_vectors_of_a_model_are_those_without_a_store_to_the_last_bit(tiny_model, tmp_path):
    encoder, pairs = VSEEncoder.from_pretrained(tiny_model, "cpu"), make_pairs(7, captions=2)
    expected = embed_pairs(encoder, pairs, batch_size=3, progress=False)
    for _ in range(2):
        found = embed_pairs(encoder, pairs, batch_size=3, progress=False, keep=tmp_path)
        assert all(torch.equal(one, other) for one, other in zip(found[:4], expected[:4], strict=True))


def brighter(pairs):
    """The same pairs with one pixel of the first image changed."""
    image = pairs[0]["image"].copy()
    image.putpixel((0, 0), (1, 2, 3))
    file = io.BytesIO()
    image.save(file, format="PNG")
    rows = [row["image"] for row in pairs.cast_column("image", pairs.features["image"].__class__(decode=False))]
    return [{"image": {"bytes": file.getvalue(), "path": None}}, *({"image": row} for row in rows[1:])]


@pytest.mark.parametrize("changed", ["nothing", "weight", "mean", "crop", "tokenizer", "content"])
def test_what_is_changed_gets_new_vectors(tiny_model, tmp_path, changed):
    pairs = make_pairs(5)
    embed_pairs(VSEEncoder.from_pretrained(tiny_model, "cpu"), pairs, progress=False, keep=tmp_path)
    encoder = VSEEncoder.from_pretrained(tiny_model, "cpu")
    prepare = encoder.processor.image_processor
    if changed == "weight":
        with torch.no_grad():
            encoder.model.visual_projection.weight[0, 0] += 0.5
    if changed == "mean":
        prepare.image_mean = [0.1, 0.2, 0.3]
    if changed == "crop":
        prepare.do_center_crop = not prepare.do_center_crop
        prepare.size = {"height": 16, "width": 16}
    if changed == "tokenizer":
        encoder.processor.tokenizer.model_max_length = 3
    passes: list[int] = []
    encoder.model.register_forward_hook(lambda *_: passes.append(1))
    if changed == "content":
        [store] = [Store(path) for path in tmp_path.glob("images-*")]
        images = brighter(pairs)
        found = encode_images(encoder, images, store=store).embeds
        assert len(passes) == 1 and len(store.index()) == 6
        assert torch.equal(found[1:], encode_images(encoder, images).embeds[1:])
        torch.testing.assert_close(found, encode_images(encoder, images).embeds)
        return
    found = embed_pairs(encoder, pairs, progress=False, keep=tmp_path)
    assert bool(passes) is (changed != "nothing")
    expected = embed_pairs(encoder, pairs, progress=False)
    assert torch.equal(found.image_embeds, expected.image_embeds)
    assert torch.equal(found.text_embeds, expected.text_embeds)


def fill_a_part(folder: str, first: int) -> None:
    torch.set_num_threads(1)
    encode(module.Path(folder), TEXTS[first : first + 7])


def test_processes_write_shards_of_their_own_and_find_all_of_them(folder):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill_a_part, args=(str(folder), first)) for first in (0, 4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):  # a reader meanwhile sees whole shards only
        for places, rows in Store(folder).read([module.digest(text.encode(), 16) for text in TEXTS]):
            np.testing.assert_array_equal(rows, plain_loop(TEXTS)[places])
    assert [worker.exitcode for worker in workers] == [0, 0]
    found, seen = encode(folder)
    assert torch.equal(found, plain_loop(TEXTS)) and seen == []


DAMAGE = {
    "truncated": lambda content: content[:-9],
    "empty": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 5,
    "one bit": lambda content: content[:-300] + bytes([content[-300] ^ 1]) + content[-299:],
    "another shard": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named_and_computed_again(folder, caplog, damage):
    encode(folder)
    one, other = shards(folder)[:2]
    one.write_bytes(other.read_bytes() if damage == "another shard" else DAMAGE[damage](one.read_bytes()))
    found, seen = encode(folder)
    assert torch.equal(found, plain_loop(TEXTS)) and len(seen) in (3, 4)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{one} is damaged (") and caplog.messages[0].endswith("remove it")
    assert encode(folder)[1] == [], "the new one is whole"


def test_what_is_no_number_is_refused_and_not_kept(folder):
    class Diverged(Letters):
        def encode_texts(self, texts):
            return super().encode_texts(texts) * (np.nan if "dog number 3" in texts[0] else 1)

    told = "letters gives what is not a number for 1 of 1 inputs, the first is number 2"
    with pytest.raises(ValueError, match=told):
        encode_texts(Diverged(), ["dog number 1", "dog number 2", "dog number 3"], 1, store=Store(folder))
    assert len(Store(folder).index()) == 2


def test_rows_of_two_lengths_are_refused(folder):
    class Longer(Letters):
        def encode_texts(self, texts):
            return np.ones((len(texts), 4))

    encode(folder, TEXTS[:5])
    with pytest.raises(ValueError, match=r"rows of shapes \(4,\) and \(9,\), by two encoders .*: remove the folder"):
        encode_texts(Longer(), TEXTS, store=Store(folder))


def test_a_slow_run_writes_before_a_shard_is_full(folder, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.0)
    encode(folder)
    assert len(shards(folder)) == 6  # one for each batch


def test_rows_of_any_shape_and_precision_come_back(folder):
    rows = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float16)
    Store(folder).fill(["a", "b", "c"], [([0, 2], rows[[0, 2]]), ([1], rows[[1]])], "a test")
    [(places, found)] = Store(folder).read(["c", "none", "a", "b"])
    assert found.dtype == np.float16 and places.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(found, rows[[2, 0, 1]])
    store = Store(folder)
    (folder / "letter.txt").write_text("of somebody")
    store.remove()
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_images_that_cannot_be_read_have_no_row_and_are_tried_again(tiny_model, tmp_path):
    encoder = VSEEncoder.from_pretrained(tiny_model, "cpu")
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    images = [{"image": str(tmp_path / "a.png")}, {"image": str(tmp_path / "b.png")}]
    found = encode_images(encoder, images, store=Store(tmp_path / "store"))
    assert found.readable.tolist() == [True, False] and not found.embeds[1].any()
    PIL.Image.new("RGB", (20, 20), "blue").save(tmp_path / "b.png")
    again = encode_images(encoder, images, store=Store(tmp_path / "store"))
    assert again.readable.all() and torch.equal(again.embeds[0], found.embeds[0])
    nothing = encode_images(encoder, [{"image": str(tmp_path / "none.png")}])
    assert not nothing.readable.any() and len(nothing.embeds) == 1
