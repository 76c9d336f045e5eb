"""Which cells speak for a sentence, against the same written out with numpy, and where they lie in the photograph."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPModel, ConvNextImageProcessorPil, SiglipImageProcessorPil

from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.relevance import grid_of, relevance, seen_box
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor

SENTENCE = "a small red circle"
VIT = {
    "model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip


def make_encoder(tokenizer, vision: dict, **options) -> VSEEncoder:
    torch.manual_seed(1)
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    model = VSEModel(VSEConfig(vision_config=vision, text_config=text, projection_dim=16, **options))
    return VSEEncoder(model, VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), tokenizer))


def picture(width: int = 48, height: int = 32) -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def parts(encoder: VSEEncoder) -> tuple[np.ndarray, np.ndarray]:
    """The cells of the last layer, (rows, columns, hidden), and the vector of the sentence."""
    with torch.no_grad():
        pixels = encoder.processor(images=[picture()])["pixel_values"]
        states = encoder.model.vision_model(pixel_values=pixels).last_hidden_state[0].numpy()
        text = encoder.encode_texts([SENTENCE])[0].numpy()
    states = states.transpose(1, 2, 0) if states.ndim == 3 else states[1:].reshape(4, 4, -1)  # after the class
    return states, text


@pytest.mark.parametrize("pooling", ["mean", "max", "gpo"])
@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_a_cell_is_scored_as_a_picture_of_it_alone(tower, pooling, tokenizer, tiny_resnet):
    vision = VIT if tower == "vit" else tiny_resnet
    encoder = make_encoder(tokenizer, vision, vision_pooling=pooling, projection_type="mlp", vision_power=0.5)
    found = relevance(encoder, picture(), SENTENCE)
    states, text = parts(encoder)
    weights = {name: each.numpy() for name, each in encoder.model.state_dict().items() if name.startswith("visual_")}
    assert found.cells.shape == states.shape[:2] == (4, 4)
    for row, column in np.ndindex(4, 4):
        cell = states[row, column].astype(np.float64)
        cell = np.sign(cell) * np.sqrt(np.maximum(np.abs(cell), 1e-6))
        cell = weights["visual_projection.weight"] @ (cell / np.linalg.norm(cell)) + weights["visual_projection.bias"]
        cell = weights["visual_head.contract.weight"] @ np.maximum(weights["visual_head.expand.weight"] @ cell, 0)
        cell = cell + weights["visual_head.contract.bias"]
        assert found.cells[row, column] == pytest.approx(cell @ text / np.linalg.norm(cell), abs=1e-5)
    assert np.ptp(found.cells) > 0.01
    with torch.no_grad():
        whole = encoder.encode_images(encoder.prepare_images([picture()]))[0].numpy()
    assert found.score == pytest.approx(whole @ text, abs=1e-6)


def test_without_a_head_the_cells_make_up_the_score_of_the_whole(tokenizer, tiny_resnet):
    encoder = make_encoder(tokenizer, tiny_resnet, vision_norm="none")
    found = relevance(encoder, picture(), SENTENCE)
    states, _ = parts(encoder)
    layer = encoder.model.visual_projection
    mapped = states @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    lengths = np.linalg.norm(mapped, axis=-1)
    made_up = (found.cells * lengths).mean() / np.linalg.norm(mapped.mean(axis=(0, 1)))
    assert found.score == pytest.approx(made_up, abs=1e-5)


@pytest.mark.parametrize("place", [(16, 4), (44, 28), (28, 12)])
def test_what_changes_in_the_photograph_changes_the_cells_that_lie_there(place, tokenizer):
    """In a tower whose cells see nothing but themselves."""
    encoder = make_encoder(tokenizer, VIT | {"num_hidden_layers": 0})
    photographs = PIL.Image.new("RGB", (56, 32), "grey"), PIL.Image.new("RGB", (56, 32), "grey")
    photographs[1].paste("red", (place[0] - 2, place[1] - 2, place[0] + 2, place[1] + 2))
    plain, marked = (relevance(encoder, image, SENTENCE) for image in photographs)
    left, top, right, bottom = marked.box
    assert marked.box == (12, 0, 44, 32)  # the middle of the photograph
    for row, column in np.ndindex(4, 4):
        x, y = left + 8 * column, top + 8 * row
        touched = x < place[0] + 2 and x + 8 > place[0] - 2 and y < place[1] + 2 and y + 8 > place[1] - 2
        assert (abs(marked.cells[row, column] - plain.cells[row, column]) > 1e-5) == touched
    x, y = marked._replace(cells=np.abs(marked.cells - plain.cells)).best
    assert abs(x - place[0]) < 6 and abs(y - place[1]) < 6


@pytest.mark.parametrize("size", [(97, 61), (50, 120), (64, 64)])
@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=32),
        SiglipImageProcessorPil(size={"height": 32, "width": 24}),
        ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.8),
    ],
    ids=["crop", "squeeze", "crop_pct"],
)
def test_the_box_is_what_the_processor_shows(processor, size):
    """Seen in a photograph whose colours say where each of its pixels lies."""
    width, height = size
    across, down = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    ramp = np.stack([across / width, down / height, 0 * across], axis=-1)
    photographs = [PIL.Image.fromarray(np.uint8(np.round(255 * each))) for each in (ramp, 0 * ramp, 0 * ramp + 1)]
    shown, black, white = (np.asarray(processor(each)["pixel_values"][0]) for each in photographs)
    places = (shown - black) / (white - black)
    left, top, right, bottom = seen_box(processor.to_dict(), width, height)
    rows, columns = places.shape[1:]
    for edge, step, found in (
        (left, right - left, places[0].mean(0) * width),
        (top, bottom - top, places[1].mean(1) * height),
    ):
        count = len(found)
        expected = edge + (np.arange(count) + 0.5) * step / count
        np.testing.assert_allclose(found[2:-2], expected[2:-2], atol=0.6)


@pytest.mark.parametrize(
    ("positions", "size", "grid"),
    [
        (197, (224, 224), (14, 14, 1)),
        (49, (224, 224), (7, 7, 0)),
        (198, (224, 224), (14, 14, 2)),
        (201, (224, 224), (14, 14, 5)),
        (33, (32, 64), (4, 8, 1)),
    ],
)
def test_a_grid_is_told_from_the_number_of_positions(positions, size, grid):
    assert grid_of(torch.Size((1, positions, 8)), *size) == grid
    with pytest.raises(ValueError, match="gives 48 positions for 224 x 224 pixels, which are no grid"):
        grid_of(torch.Size((1, 48, 8)), 224, 224)


def test_models_without_cells_say_so_in_one_line(tokenizer):
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    both = {
        "model_type": "clip", "projection_dim": 16, "text_config": tower | {"vocab_size": 99},
        "vision_config": tower | {"image_size": 32, "patch_size": 16},
    }  # fmt: skip
    whole = VSEModel(VSEConfig(dual_encoder_config=both, projection_dim=16, projection_type="none"))
    cases = [
        (make_encoder(tokenizer, VIT, vision_pooling="cls"), "vision_pooling is 'cls'; train with one of mean, max"),
        (make_encoder(tokenizer, {"model_type": "vse_features", "hidden_size": 8}), "has no image tower"),
        (VSEEncoder(whole, VSEProcessor(tokenizer=tokenizer)), "its dual encoder takes one position"),
        (CLIPModel.__new__(CLIPModel), "only models of hf_vse"),
    ]
    for encoder, reason in cases:
        with pytest.raises(ValueError, match=f"does not show where: .*{reason}"):
            relevance(encoder, picture(), SENTENCE)
