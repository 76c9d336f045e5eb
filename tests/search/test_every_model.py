"""Every command with every kind of model: index, grow, search, demo, evaluate, and the same vectors in all of them."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from PIL import Image
from safetensors.torch import load_file, save_file

import hf_vse
from hf_vse.cli.command import bundled
from hf_vse.cli.main import main
from hf_vse.embed.adapters.transformers_models import processor_of
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.evaluator import embed_pairs
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.search import build
from hf_vse.search.gallery import GalleryIndex
from tests.conftest import save_photographs
from tests.embed.test_transformers_models import CASES, save

KINDS = ("vse", "started as siglip", "clip", "siglip", "sentence_transformers", "onnx", "python", "joint")
MY_ENCODER = """
import numpy as np
from hf_vse import Encoder

class Tones(Encoder):
    def encode_images(self, images):
        return np.stack([np.asarray(image, np.float64).mean((0, 1)) + 1 for image in images])
    def encode_texts(self, texts):
        return np.array([[text.count(letter) + 0.5 for letter in "aei"] for text in texts])
"""


class Model(NamedTuple):
    name: str  # what `--model` is given
    folder: Path


def make_model(kind: str, folder: Path, tiny_model: Path, tokenizer) -> Model:
    if kind == "vse":
        return Model(str(shutil.copytree(tiny_model, folder)), folder)
    if kind == "started as siglip":
        source = save(folder.parent / "source", CASES["siglip"], tokenizer)
        VSEModel.from_dual_encoder(load_encoder(str(source), device="cpu").model).save_pretrained(folder)
        processor_of(str(source)).save_pretrained(folder)
        return Model(str(folder), folder)
    if kind in CASES:
        return Model(str(save(folder, CASES[kind], tokenizer)), folder)
    if kind == "joint":
        save(folder.parent / "clip", CASES["clip"], tokenizer)
        return Model(f"{shutil.copytree(tiny_model, folder)}+{folder.parent / 'clip'}", folder)
    if kind == "python":
        folder.mkdir()
        (folder / "tones.py").write_text(MY_ENCODER)
        return Model(f"{folder / 'tones.py'}:Tones", folder)
    return make_sentence_transformers(folder, tokenizer)


def make_sentence_transformers(folder: Path, tokenizer) -> Model:
    library = pytest.importorskip("sentence_transformers")
    inner = save(folder / "inner", CASES["clip"], tokenizer)
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(inner)
    transformers.CLIPProcessor(pixels, deepcopy(tokenizer)).save_pretrained(inner)
    library.SentenceTransformer(str(inner), device="cpu").save(str(folder / "outer"))
    return Model(str(folder / "outer"), folder / "outer")


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory, tiny_model, tokenizer) -> Model:
    torch.manual_seed(0)
    if request.param == "onnx":
        folder = shutil.copytree(request.getfixturevalue("tiny_onnx"), tmp_path_factory.mktemp("onnx") / "model")
        return Model(str(folder), folder)
    return make_model(request.param, tmp_path_factory.mktemp(request.param) / "model", tiny_model, tokenizer)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return save_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def gallery(model, photographs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery") / "index"
    assert run("index", photographs, folder, "--model", model.name) == 0
    return folder


def run(*words: object) -> int:
    return main([*map(str, words), "--quiet"])


def refused(capsys, *words: object) -> str:
    """The one line with which a command ends."""
    assert run(*words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def consent(model: Model) -> list[str]:
    """A Python class is run only where its name is given."""
    return ["--model", model.name] if model.name.endswith(":Tones") else []


def found(capsys, *words: object) -> list[dict]:
    capsys.readouterr()
    assert run(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def as_data_set(photographs: Path, made: GalleryIndex) -> Dataset:
    """The images of a gallery in its order, with captions."""
    files = [str(photographs / item["file"]) for item in made.items]
    rows = {
        "image": files,
        "image_id": list(range(12)),
        "captions": [[f"{row} red", "a blue star"] for row in range(12)],
    }
    rows["caption_ids"] = [[2 * row, 2 * row + 1] for row in range(12)]
    return Dataset.from_dict(rows).cast_column("image", datasets.Image())


def test_all_commands_make_the_same_vectors(model, gallery, photographs, capsys, tmp_path, monkeypatch):
    """To the last bit: one process, and the same images in a batch."""
    encoder, made = load_encoder(model.name), GalleryIndex.load(gallery)
    assert len(made) == 12 and made.embeds.shape[1] == encoder.dim
    dataset = as_data_set(photographs, made)
    evaluated = embed_pairs(encoder, dataset, batch_size=64, progress=False)
    assert np.array_equal(made.embeds, evaluated.image_embeds.numpy())
    captions = [caption for each in dataset["captions"] for caption in each]
    queries = encoder.query(captions)
    assert queries.shape == (24, encoder.dim) and queries.dtype == np.float32
    assert np.array_equal(queries, evaluated.text_embeds.numpy())
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)

    answers = found(capsys, "search", gallery, *captions, "-k", 12, *consent(model))
    scores, items = made.search(queries, 12, encoder)
    for answer, of_query, best in zip(answers, scores, items, strict=True):
        assert [each["score"] for each in answer["results"]] == [round(float(score), 4) for score in of_query]
        assert [each["item"] for each in answer["results"]] == best

    pytest.importorskip("gradio")
    monkeypatch.syspath_prepend(str(bundled("spaces_demo")))
    from hf_vse.cli import demo_page

    DatasetDict({"test": dataset}).save_to_disk(str(tmp_path / "shown"))
    pages = []
    open_galleries = demo_page.app.open_galleries
    monkeypatch.setattr(demo_page.app, "open_galleries", lambda *of: pages.extend(open_galleries(*of)) or pages)
    settings = demo_page.app.Settings(model.name, str(tmp_path / "shown"), cache_dir=tmp_path / "cache")
    page = demo_page.app.build(settings, demo_page.LocalModel)
    assert np.array_equal(pages[0].image_embeds, made.embeds)
    labels = [block.label for block in page.blocks.values() if type(block).__name__ == "Tab"]
    assert ("Labels" in labels) == (encoder.temperature is not None)
    assert str(model.folder.parent) not in json.dumps(demo_page.app.describe(pages[0]))


def test_only_what_is_new_or_changed_is_encoded(model, gallery, photographs, tmp_path, monkeypatch):
    grown, folder = shutil.copytree(photographs, tmp_path / "photographs"), tmp_path / "index"
    assert run("index", grown, folder, "--model", model.name) == 0
    before = {item["file"]: row for item, row in zip(*with_vectors(folder), strict=True)}
    Image.new("RGB", (40, 36), "navy").save(grown / "city/new.png")
    Image.new("RGB", (36, 40), "tan").save(grown / "lake/03.png")
    encoded = []

    def counting(encoder, images, *arguments):
        encoded.extend(Path(row["image"]).name for row in images)
        return encode_images(encoder, images, *arguments)

    encode_images = build.encode_images
    monkeypatch.setattr(build, "encode_images", counting)
    assert run("index", grown, folder, "--model", model.name) == 0
    assert sorted(encoded) == ["03.png", "new.png"]
    after = {item["file"]: row for item, row in zip(*with_vectors(folder), strict=True)}
    assert after.keys() == before.keys() | {"city/new.png"}
    assert {file for file in before if not np.array_equal(before[file], after[file])} == {"lake/03.png"}


def with_vectors(folder: Path) -> tuple[list, np.ndarray]:
    made = GalleryIndex.load(folder)
    return made.items, np.array(made.embeds)


def test_evaluate_takes_it_too(model, photographs, tmp_path, capsys):
    where = ["--dataset", "imagefolder", "--data_dir", photographs, "--split", "train"]
    [record] = [found(capsys, "evaluate", model.name, *where, "--output", tmp_path / "numbers.json")]
    assert '"i2t_r1"' in json.dumps(record)


def test_the_gallery_says_what_made_it(model, gallery):
    encoder, facts = load_encoder(model.name), GalleryIndex.load(gallery).facts
    assert (facts["model"], facts["digest"]) == (model.name, encoder.digest)
    opened = {"place": model.name, "kind": encoder.kind, "needs": list(encoder.needs), "dtype": encoder.dtype}
    assert facts["encoder"] == opened


def test_another_model_and_another_preparation_are_refused(model, gallery, tiny_model, capsys):
    encoder = load_encoder(model.name)
    before = {path: path.read_bytes() for path in model.folder.rglob("*") if path.is_file()}
    changes = {
        "preprocessor_config.json": lambda path: change_json(path, image_mean=[0.1, 0.2, 0.3]),
        "processor_config.json": change_image_processor,
        "model.safetensors": change_weights,
        "tones.py": lambda path: path.write_text(path.read_text().replace("mean", "max")),
        "text_encoder.onnx": lambda path: path.write_bytes(path.read_bytes() + b"\x72\x00"),
    }
    tried = 0
    for path in before:
        if path.name in changes:
            changes[path.name](path)
            said = refused(capsys, "search", gallery, "a red circle", *consent(model))
            assert "with other weights or another preparation; use one model for both" in said
            path.write_bytes(before[path])
            tried += 1
    assert tried >= (1 if encoder.kind == "python" else 2)
    assert run("search", gallery, "a red circle", *consent(model)) == 0
    if encoder.kind != "vse":
        said = refused(capsys, "search", gallery, "a red circle", "--model", tiny_model)
        assert f"the gallery was made by {model.name!r}, the query by {str(tiny_model)!r}; use one model" in said


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_image_processor(path: Path) -> None:
    inner = json.loads(path.read_text())["image_processor"]
    change_json(path, image_processor=inner | {"image_mean": [0.1, 0.2, 0.3]})


def change_weights(path: Path) -> None:
    weights = load_file(path)
    name = next(name for name in sorted(weights) if weights[name].is_floating_point() and weights[name].ndim > 1)
    weights[name] = weights[name] + 0.5
    save_file(weights, path, {"format": "pt"})


def test_a_python_class_runs_only_where_a_person_names_it(tmp_path, tiny_model, tokenizer, photographs, capsys):
    """A gallery may come from anywhere."""
    model = make_model("python", tmp_path / "model", tiny_model, tokenizer)
    assert run("index", photographs, tmp_path / "index", "--model", model.name) == 0
    Path(model.folder / "tones.py").write_text("raise SystemExit('it was run')")
    said = refused(capsys, "search", tmp_path / "index", "red")
    assert f"a Python class, and code is not run because a gallery names it: add --model {model.name}" in said


def test_a_missing_package_and_a_model_that_is_gone_are_one_line(
    tmp_path, tokenizer, photographs, capsys, monkeypatch
):
    model = make_sentence_transformers(tmp_path / "model", tokenizer)
    assert run("index", photographs, tmp_path / "index", "--model", model.name) == 0
    monkeypatch.setattr("hf_vse.embed.weights.find_spec", lambda package: None)
    said = refused(capsys, "search", tmp_path / "index", "red")
    assert f"{model.name} needs sentence-transformers: pip install 'hf_vse[sentence]'" in said
    model.folder.rename(tmp_path / "elsewhere")
    said = refused(capsys, "search", tmp_path / "index", "red")
    assert f"{model.name}, the model that made the gallery, is gone: name it with --model" in said


def test_the_page_shows_a_gallery_with_the_model_that_made_it(tiny_model, photographs, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio")
    monkeypatch.syspath_prepend(str(bundled("spaces_demo")))
    from hf_vse.cli import demo, demo_page

    monkeypatch.setattr(demo, "cache", lambda: tmp_path / "cache")
    copied = shutil.copytree(tiny_model, tmp_path / "model")
    assert run("index", photographs, tmp_path / "index", "--model", copied) == 0
    asked = demo.parse([str(tmp_path / "index")])
    name, parquet, vectors = demo.of_gallery(asked)
    assert name == str(copied)
    assert demo.of_gallery(demo.parse([str(tmp_path / "index"), "--model", ""]))[0] == ""  # and is refused later
    shown = Dataset.from_parquet(parquet)
    assert [row["captions"] for row in shown][-1] == ["11"], "the name of the file, where there is no caption"
    options = demo.page_options(asked, vectors)
    model, made = demo_page.LocalModel(name, **options), GalleryIndex.load(tmp_path / "index")
    assert np.array_equal(model.encode_images(shown["image"][:]), made.embeds)
    with monkeypatch.context() as patched:
        patched.setattr(demo_page, "encode_images", None)  # nothing is encoded again
        assert np.array_equal(model.encode_rows([2, 0], shown["image"][[2, 0]]), np.array(made.embeds)[[2, 0]])
    assert model.judge_labels(shown["image"][0], ["red", "blue"]).sum() == pytest.approx(1)
    change_weights(copied / "model.safetensors")
    with pytest.raises(ValueError, match="with other weights or another preparation; use one model for both"):
        demo_page.LocalModel(name, **options)
    assert "--split is of no use" in refused(capsys, "demo", tmp_path / "index", "--split", "test")


def test_the_page_encodes_a_photograph_that_has_changed_since_it_was_indexed(
    tiny_model, photographs, tmp_path, monkeypatch
):
    pytest.importorskip("gradio")
    monkeypatch.syspath_prepend(str(bundled("spaces_demo")))
    from hf_vse.cli import demo, demo_page

    monkeypatch.setattr(demo, "cache", lambda: tmp_path / "cache")
    grown = shutil.copytree(photographs, tmp_path / "photographs")
    assert run("index", grown, tmp_path / "index", "--model", tiny_model) == 0
    files = [item["file"] for item in GalleryIndex.load(tmp_path / "index").items]
    changed, broken = files.index("lake/03.png"), files.index("city/00.png")
    Image.new("RGB", (36, 40), "tan").save(grown / "lake/03.png")
    (grown / "city/00.png").write_bytes(b"none")
    asked = demo.parse([str(tmp_path / "index")])
    name, parquet, vectors = demo.of_gallery(asked)
    model, shown = demo_page.LocalModel(name, **demo.page_options(asked, vectors)), Dataset.from_parquet(parquet)
    embeds = np.delete(np.array(GalleryIndex.load(tmp_path / "index").embeds), broken, axis=0)
    encoded = model.encode_images(shown["image"][:])
    assert len(shown) == len(embeds) and not np.allclose(
        encoded[changed - (broken < changed)], embeds[changed - (broken < changed)]
    )
    np.testing.assert_allclose(model.encode_rows(range(len(shown)), shown["image"][:]), encoded, atol=1e-6)
    assert np.isnan(model.vectors).any(axis=1).sum() == 1


def test_an_encoder_without_a_digest_makes_no_gallery(photographs, tmp_path):
    class Nameless(Encoder):
        digest = None

    with pytest.raises(ValueError, match="unnamed model has no digest, .* give it a digest that changes with weights"):
        build.build_gallery(photographs, Nameless(), tmp_path / "index", progress=False)
    assert not (tmp_path / "index").exists()


def test_the_precision_of_the_gallery_is_that_of_its_queries(tiny_model, photographs, tmp_path, capsys):
    words = ["index", photographs, tmp_path / "index", "--model", tiny_model, "--dtype", "bfloat16", "--device", "cpu"]
    assert run(*words) == 0
    assert run("search", tmp_path / "index", "red") == 0
    said = refused(capsys, "search", tmp_path / "index", "red", "--dtype", "float32")
    assert "with other weights or another preparation" in said


def test_a_digest_covers_the_source_and_what_a_class_declares(tmp_path):
    digests = set()
    for place, (source, declared) in enumerate(
        (("std", ""), ("mean", ""), ("std", "digest = 'a'"), ("std", "digest = 'b'"))
    ):
        file = tmp_path / str(place) / "tones.py"
        file.parent.mkdir()
        file.write_text(MY_ENCODER.replace("mean", source).replace("(Encoder):", f"(Encoder):\n    {declared}"))
        digests.add(load_encoder(f"{file}:Tones").digest)
    assert len(digests) == 4
    (file.parent / "helper.py").write_text("from deeper import FOUR\n")
    file.write_text(f"import helper\n{MY_ENCODER}")
    for content in ("FOUR = 4\n", "FOUR = 2 + 2\n"):  # what its imports import
        (file.parent / "deeper.py").write_text(content)
        digests.add(load_encoder(f"{file}:Tones").digest)
    assert len(digests) == 6
    file.write_text(MY_ENCODER + "    digest = property(lambda self: 'a')\n")
    with pytest.raises(ValueError, match="digest of Tones is a property; make it an attribute"):
        load_encoder(f"{file}:Tones")


def test_old_names_lead_to_the_new_ones(tiny_model):
    with pytest.warns(DeprecationWarning, match="DualEncoder is now Encoder"):
        assert hf_vse.DualEncoder is hf_vse.Encoder is Encoder
    with pytest.warns(DeprecationWarning, match="is now load_encoder"):
        old = hf_vse.Encoder.from_pretrained(str(tiny_model), "cpu")
    query = old.query("two dogs")
    assert old.digest == load_encoder(str(tiny_model)).digest
    assert query.shape == (1, 16) and query.dtype == np.float32 and np.linalg.norm(query) == pytest.approx(1, abs=1e-6)
