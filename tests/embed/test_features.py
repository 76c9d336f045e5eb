import numpy as np
import pytest
import torch

from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.features import extract_features
from tests.conftest import make_pairs


@pytest.fixture
def encoder(tiny_model):
    return VSEEncoder.from_pretrained(tiny_model)


def test_an_interrupted_call_continues_and_another_tower_does_not(encoder, tmp_path, monkeypatch):
    images, run = make_pairs(10).select_columns(["image"]), []
    pool_images = encoder.model.pool_images

    def counting(**inputs):
        if len(run) == 3:
            raise KeyboardInterrupt
        run.append(len(inputs["pixel_values"]))
        return pool_images(**inputs)

    def extract(name: str = "features.npy", **options) -> np.ndarray:
        prepare = encoder.processor.image_processor
        return extract_features(
            encoder.model, prepare, images, tmp_path / name, batch_size=4, progress=False, **options
        )

    whole = extract("whole.npy")
    monkeypatch.setattr(encoder.model, "pool_images", counting)
    with pytest.raises(KeyboardInterrupt):
        extract()
    assert run == [1, 4, 4] and not (tmp_path / "features.npy").exists()  # the first image tells the shape
    run.clear()
    np.testing.assert_array_equal(extract(), whole)
    assert run == [1, 2]

    run.clear()
    with pytest.raises(KeyboardInterrupt):
        extract()
    monkeypatch.undo()
    with torch.no_grad():
        next(encoder.model.vision_model.parameters()).mul_(2.0)
    other = extract()
    assert not np.isnan(other).any() and (other != whole).any(axis=1).all()


def test_regions_are_all_states(encoder, tmp_path):
    images = make_pairs(3).select_columns(["image"])
    prepare = encoder.processor.image_processor
    grid = extract_features(encoder.model, prepare, images, tmp_path / "grid.npy", regions=True, progress=False)
    pooled = extract_features(encoder.model, prepare, images, tmp_path / "pooled.npy", progress=False)
    assert grid.shape == (3, 16, 16) and pooled.shape == (3, 16)
    encoder.model.config.mirror_average = True  # which is of evaluation; these are outputs of the tower
    mirrored = extract_features(encoder.model, prepare, images, tmp_path / "mirrored.npy", progress=False)
    np.testing.assert_array_equal(mirrored, pooled)
    np.testing.assert_allclose(grid.astype(np.float32).mean(axis=1), pooled, atol=2e-3)
    with pytest.raises(ValueError, match="must end in .npy"):
        extract_features(encoder.model, prepare, images, tmp_path / "features.safetensors")
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        extract_features(encoder.model, prepare, [{"image": str(tmp_path / "none.png")}], tmp_path / "features.npy")
