"""What a card says, whose it is, and what may be published, without a Hub."""

import inspect
import json
import logging
from pathlib import Path
from typing import get_args

import pytest
from huggingface_hub import ModelCard

import hf_vse
from hf_vse.hub.card import PROJECTION, model_card
from hf_vse.hub.contents import published_files, upload_operations
from hf_vse.hub.directory import check_model_directory
from hf_vse.hub.private import without_paths
from hf_vse.hub.record import run_of
from hf_vse.hub.signature import is_ours
from hf_vse.model.configuration_vse import ProjectionType, VSEConfig
from hf_vse.model.losses_vse import OBJECTIVES
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from tests.hub.records import HOME, coco_record, split

FEATURES = {"model_type": "vse_features", "hidden_size": 10}
PERSONS = "---\nlicense: mit\n---\n\n# Mine\n\nA person wrote this.\n"


def config(**options) -> VSEConfig:
    text = {"model_type": "vse_gru_text", "vocab_size": 1234, "word_dim": 8, "hidden_size": 16}
    return VSEConfig(**{"vision_config": FEATURES, "text_config": text, "projection_dim": 16} | options)


@pytest.fixture
def directory(tokenizer, tmp_path) -> Path:
    VSEModel(config(text_config={"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16})).save_pretrained(
        tmp_path
    )
    VSEProcessor(tokenizer=tokenizer).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_card_of_every_objective_says_what_it_computes(loss_type):
    text = model_card(config(loss_type=loss_type), {}, (), repo_id="org/name", license="mit", num_parameters=4321)
    card = ModelCard(text)
    objective = OBJECTIVES[loss_type]
    formula = inspect.getdoc(objective.row_loss).partition("\n\n")[0]
    assert f"`{loss_type}` ({objective.known_as})" in card.text and f"```\n{formula}\n```" in card.text
    margin = "m" in formula.replace("max", "").replace("sum", "")
    assert ("the margin (0.2)" in card.text) == margin == ("margin" in objective.settings)
    assert "p the cosine similarity to its positive" in card.text
    assert ("learned, from 0.1" in card.text) == (loss_type in ("clip", "siglip"))
    assert ("summed over the batch" in card.text) == (OBJECTIVES[loss_type].reduction == "sum")
    assert ("directions averaged" in card.text) == (OBJECTIVES[loss_type].directions == "average")
    assert "1,234 words of 8 numbers, then a GRU of 16" in card.text and "| parameters | 4,321 |" in card.text
    assert "precomputed features of 10 numbers" in card.text and "pipeline(" not in card.text
    assert card.data.license == "mit" and card.data.language == "en" and loss_type in card.data.tags
    assert "model-index" not in card.data.to_dict() and "2110.08872" in card.text and is_ours(text)


def test_card_says_what_the_fields_change_in_the_formula():
    usual = model_card(config(loss_type="clip"), {}, (), repo_id="org/name")
    assert "In place of p" not in usual and "hardness" not in usual and "two directions averaged.\n" in usual
    fields = {"loss_type": "clip", "positive_margin": -0.5, "hardness": 2, "image_weight": 0.75, "negatives_kept": 9}
    fields |= {"false_negative_gap": 0.05}
    text = model_card(config(**fields), {}, (), repo_id="org/name")
    assert "In place of p stands p + 0.5, an additive margin." in text and "the\nhardness b = 2; no gradient" in text
    assert "Candidates with s_j > p + 0.05 are no negatives: they may be true." in text
    assert "Of its negatives the 9 hardest count." in text and "N negatives that count is weighted" in text
    assert "directions averaged, of which image-to-text counts 0.75 : 0.25 against text-to-image." in text


@pytest.mark.parametrize("projection_type", get_args(ProjectionType))
def test_card_of_a_model_that_started_as_a_dual_encoder(projection_type):
    source = {"model_type": "clip", "projection_dim": 16, "vision_config": {"hidden_size": 48}, "text_config": {}}
    started = VSEConfig(dual_encoder_config=source, projection_type=projection_type, projection_dim=16)
    text = model_card(started, {}, (), repo_id="org/name")
    words = "that of the model it started from" if projection_type == "none" else "a linear map"
    assert f"| projection | {words}" in text and "to unit vectors of 16 numbers |" in text
    assert "hidden size 48" in text


def test_card_of_a_run_shows_folds_stages_and_pictures():
    vision = {"model_type": "vit", "hidden_size": 48, "num_hidden_layers": 3}
    record = without_paths(coco_record())
    text = model_card(
        config(vision_config=vision), record, {"training_curves_base.png", "modules.json"}, repo_id="org/name"
    )
    card = ModelCard(text)
    assert "| test 1K, mean of five folds | 40.0 | 43.1 | 46.3 | 49.4 | 55.7 |" in card.text
    assert "| chance | 0.0 | 0.1 | 0.2 |  | 0.0 | 0.1 | 0.2 |  |  |" in card.text
    assert (
        "vit (hidden size 48, layers 3" in card.text
        and "![Loss and validation recall.](training_curves_base.png)" in text
    )
    assert "3.0 minutes in all on 2 × a GPU" in card.text and "`learning_rate=0.0001`" in card.text
    assert "| `learning_rate` | `0.0002` |" in card.text and "torch 2.13.0" in card.text
    assert "pipeline(" in card.text and "SentenceTransformer(" in card.text
    assert "MS-COCO, Karpathy split" in card.text and "their licence is separate" in card.text
    assert {(each.dataset_name, each.dataset_config) for each in card.data.eval_results} == {
        ("MS-COCO (validation)", "default"),
        ("MS-COCO (test)", "default"),
        ("MS-COCO (test 1K, mean of five folds)", "1k_folds"),
    }


def test_card_says_which_captions_are_equal_and_gives_each_split_its_chance():
    record = without_paths(coco_record())
    for name, number in (("validation", 7.0), ("test", 8.0)):
        measured = record["metrics"][name]
        measured["chance"] = {key: number for key in measured["chance"]}
    record["metrics"]["test"] |= {
        "equal_captions": {"captions": 1234, "images": 99, "sentences": 5},
        "metrics_equal_captions": {key: 77.7 for key in record["metrics"]["test"]["metrics"]},
    }
    text = model_card(config(), record, (), repo_id="org/name")
    assert "| chance, validation | 7.0 |" in text and "| chance, test | 8.0 |" in text
    assert "| test, equal captions | 77.7 |" in text and "(1,234 of test)" in text
    record["metrics"]["test"]["metrics_equal_captions"] = dict(record["metrics"]["test"]["metrics"])
    assert "equal captions" not in model_card(config(), record, (), repo_id="org/name")  # it changes no recall


def test_card_says_what_was_no_negative_in_training():
    """Equal captions and groups, how many, and only where they were masked in every stage."""
    counted = {"images": 2000, "captions": 9000, "equal_captions": {"captions": 1234, "images": 99, "sentences": 5}}
    counted["groups"] = {"groups": 7, "images": 1500, "largest": 21}
    record = without_paths(coco_record() | {"training_data": counted})

    def card(**recipe) -> str:
        text = model_card(config(), record | {"recipe": record["recipe"] | recipe}, (), repo_id="org/name")
        return " ".join(text.split())

    equal = (
        "1,234 of 9,000 training captions are word for word captions of other images too (5 sentences): pairs of "
        "equal caption are no negatives of each other."
    )
    groups = (
        "1,500 of 2,000 training images are in 7 groups of near-duplicate or related images (the largest has 21): "
        "images of a group are no negatives of each other."
    )
    assert equal in card() and groups in card()
    off = [{"name": "base"}, {"name": "contrastive", "mask_equal_captions": False}]
    for recipe in ({"mask_equal_captions": False}, {"stages": off}):
        assert "training captions are" not in card(**recipe) and groups in card(**recipe)
    assert equal in card(mask_same_image=False) and "training images are in" not in card(mask_same_image=False)
    counted["equal_captions"] = {"captions": 0, "images": 0, "sentences": 0}
    counted["groups"] = {"groups": 0, "images": 0, "largest": 0}
    record = without_paths(coco_record() | {"training_data": counted})
    assert "training captions are" not in card() and "training images are in" not in card()
    assert "Pairs of equal caption" not in card()
    record = without_paths(coco_record() | {"training_data": {}})
    assert "Pairs of equal caption are no negatives of each other; in the stream" in card()
    assert "Pairs of equal caption" not in card(mask_equal_captions=False)


def test_card_shows_the_start_of_a_fine_tuning_before_its_result():
    record = without_paths(coco_record() | {"start": {"model": "org/clip", "metrics": {"test": split(1.5)}}})
    text = model_card(config(), record, (), repo_id="org/name")
    assert text.index("| test, before fine-tuning | 1.5 |") < text.index("| test | 11.0 |")
    assert "before fine-tuning" not in model_card(config(), without_paths(coco_record()), (), repo_id="org/name")


def test_card_knows_every_projection():
    assert PROJECTION.keys() == set(get_args(ProjectionType))


def test_card_is_ours_until_a_person_changes_it():
    text = model_card(config(), without_paths(coco_record()), (), repo_id="org/name")
    card = ModelCard(text)
    card.data.tags.append("from the web page")
    card.data.license = "mit"
    assert is_ours(text) and is_ours(text.replace("\n", "\r\n")) and is_ours(str(card))
    assert not is_ours(text.replace("a photograph its sentence", "my cat"))
    assert not is_ours(text.replace("language: en", "language: fr"))
    assert not is_ours(text + "\nAddendum.\n")
    assert not is_ours(PERSONS) and is_ours("---\nlicense: mit\n---\n")


@pytest.mark.parametrize(
    ("there", "beside", "expected"),
    [
        (None, None, "new"),
        ("ours", "ours", "new"),
        (None, "person", "person"),
        ("ours", "person", "person"),
        ("person", "ours", None),
        ("person", "person", None),
    ],
)
def test_card_that_a_person_wrote_stays(there, beside, expected, directory, caplog):
    ours = model_card(config(loss_type="siglip"), {}, (), repo_id="org/other", license="mit")
    texts = {None: None, "ours": ours, "person": PERSONS}
    if beside:
        (directory / "README.md").write_text(texts[beside])
    with caplog.at_level(logging.WARNING):
        operations = upload_operations(directory, directory, "org/name", card_there=texts[there])
    found = {each.path_in_repo: each.path_or_fileobj for each in operations}.get("README.md")
    assert ("changed by hand" in caplog.text) == (there == "person" and beside != "person")
    if expected == "new":
        card = ModelCard(found.decode())
        assert "siglip" not in card.text and 'from_pretrained("org/name"' in card.text
        assert card.data.license == ("mit" if there else None)
    else:
        assert found == (None if expected is None else PERSONS.encode())


def test_record_is_kept_from_paths_and_secrets():
    clean = without_paths(coco_record())
    assert HOME not in json.dumps(clean) and "hf_secret" not in json.dumps(clean)
    assert clean["metrics"] == coco_record()["metrics"]
    assert clean["recipe"]["run_name"] == "as in notes.txt" and clean["recipe"]["output_dir"] == "first"
    kept = {
        "dataset": "org/pairs",
        "image_tower": "timm/resnet152.a1_in1k",
        "note": "see https://arxiv.org/abs/2110.08872",
    }
    assert without_paths(kept) == kept
    assert without_paths({"init_from": "runs/old/stages/base", "data_dir": r"C:\Users\me\photos"}) == {
        "init_from": "base", "data_dir": "photos",
    }  # fmt: skip


def test_record_belongs_to_unchanged_weights(directory, tmp_path_factory, caplog):
    (directory / "metrics.json").write_text(json.dumps(coco_record()))
    saved = tmp_path_factory.mktemp("saved")
    model = VSEModel.from_pretrained(directory)
    model.save_pretrained(saved)
    assert run_of(saved, model.name_or_path) == directory
    model.visual_projection.weight.data.add_(1)
    model.save_pretrained(saved)
    assert run_of(saved, model.name_or_path) is None and "are not those of" in caplog.text


def test_photographs_are_published_only_where_they_are_nobodys_or_when_asked(directory):
    (directory / "retrieval.png").write_bytes(b"")
    shown = {}
    for dataset in ("scenes", "coco"):
        (directory / "metrics.json").write_text(json.dumps(coco_record() | {"dataset": dataset}))
        for asked in (False, True):
            shown[dataset, asked] = "retrieval.png" in published_files(directory, directory, photographs=asked)
    assert [pair for pair, here in shown.items() if not here] == [("coco", False)]


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"holds no model \(config.json is missing\)"),
        (break_config, "model_type is 'bert', a model of this package has 'vse'"),
        (pickle_only, "pytorch_model.bin is not read: only safetensors are read, other formats may run code"),
        (cut_off, "model.safetensors is not a complete safetensors file"),
        (lambda folder: (folder / "modeling_vse.py").unlink(), "lacks modeling_vse.py: save model and processor"),
        (
            lambda folder: (folder / "processor_config.json").unlink(),
            "holds no processor_config.json, its image processor and tokenizer",
        ),
    ],
)
def test_directory_without_a_whole_model_is_refused_in_one_line(spoil, message, directory):
    assert check_model_directory(directory) == directory
    spoil(directory)
    with pytest.raises((ValueError, OSError), match=message) as refused:
        check_model_directory(directory)
    assert "\n" not in str(refused.value)


def test_models_of_the_package_are_pushed_with_its_card():
    """The place from which the model is imported at first is that which gives it the card."""
    assert hf_vse._HOME["VSEModel"] == hf_vse.VSEModel.push_to_hub.__module__ == "hf_vse.hub.push"
