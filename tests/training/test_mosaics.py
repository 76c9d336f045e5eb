"""Mosaics against the same written out: a canvas filled tile by tile, and loops over the cells of a part."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessorPil

from hf_vse.model.losses_vse import contrastive_loss
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.mosaics import (
    Part,
    cells_inside,
    cells_of,
    check_mosaics,
    check_mosaics_fit,
    drawn_sides,
    mosaic_inputs,
    mosaics,
    places_in_mosaics,
    pooled_by_part,
)
from hf_vse.training.recipe import build_recipe
from tests.conftest import make_pairs
from tests.embed.test_relevance import VIT
from tests.training.test_trainer import arguments, make_model, make_trainer

PIXELS = 48  # which the towers see as 6 x 6 cells
SIDES = [2, 3]
PHOTOGRAPHS = 4 + 9 + 2


def written_out(model, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The pooled vector of every photograph."""
    pooled, start = [], 0
    for side in SIDES:
        size = PIXELS // side
        canvas = torch.zeros(1, 3, PIXELS, PIXELS)
        for tile in range(side * side):
            row, column = divmod(tile, side)
            small = F.interpolate(pixels[start + tile][None], (size, size), mode="bilinear", antialias=True)
            canvas[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size] = small
        states = model.vision_model(pixel_values=canvas).last_hidden_state[0]
        grid = states if states.ndim == 3 else states[1:].T.unflatten(1, (6, 6))
        for tile in range(side * side):
            row, column = divmod(tile, side)
            many = 6 // side
            cells = [
                grid[:, y, x]
                for y in range(row * many, (row + 1) * many)
                for x in range(column * many, (column + 1) * many)
            ]
            pooled.append(sum(cells) / len(cells))
        start += side * side
    for alone in pixels[start:]:
        pooled.append(model.pool_images(alone[None]).pooler_output[0])
    return pooled


@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_a_part_is_pooled_from_its_cells_forward_and_backward(tower, tokenizer, tiny_resnet):
    vision = VIT | {"image_size": PIXELS} if tower == "vit" else tiny_resnet
    model = make_model(tokenizer, vision).eval()
    pixels, target = torch.randn(PHOTOGRAPHS, 3, PIXELS, PIXELS), torch.randn(PHOTOGRAPHS, 16)
    alone = model(pixel_values=pixels).image_embeds.detach()
    pictures = mosaics(pixels, SIDES)
    assert len(pictures) == 2 + 2
    found, gradients = [], []
    with pooled_by_part(model, places_in_mosaics(PHOTOGRAPHS, SIDES), PIXELS, PIXELS):
        found.append(model(pixel_values=pictures).image_embeds)
    pooled = torch.stack(written_out(model, pixels))
    found.append(model(image_features=pooled).image_embeds)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0][-2:], alone[-2:])
    assert (found[0][:-2] - alone[:-2]).abs().max() > 1e-3  # a mosaic is not the photograph
    for embeds in found:
        model.zero_grad()
        (embeds * target).sum().backward(retain_graph=True)
        reached = [each.grad for each in model.vision_model.parameters() if each.grad is not None]
        gradients.append(torch.cat([each.flatten() for each in reached]))
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(model(pixel_values=pixels).image_embeds, alone)  # afterwards it pools as before


def test_the_loss_of_a_step_keeps_the_pairs_and_what_is_masked(tokenizer, tiny_resnet, tmp_path):
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    options = {"mosaic_share": 0.7, "mosaic_sides": [2], "diagnostics_steps": 0, "crop_min_scale": 1.0}
    trainer = make_trainer(
        tmp_path,
        tokenizer,
        make_pairs(12),
        make_model(tokenizer, tiny_resnet),
        VSEProcessor(CLIPImageProcessorPil(**sides), tokenizer),
        **options,
    )
    trainer.current_gradient_accumulation_steps = 1
    batch = next(iter(trainer.get_train_dataloader()))
    batch["image_ids"] = torch.tensor([0, 1, 0, 2, 3, 4, 4, 5])
    runs = []
    trainer.model.vision_model.register_forward_hook(lambda _, given, output: runs.append(len(output[0])))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    inputs, pooling = mosaic_inputs(trainer.model, trainer.args, 0, batch)
    given = {name: each for name, each in inputs.items() if name not in ("image_ids", "text_ids")}
    with pooling:
        outputs = trainer.model(**given, return_logits=False)
    assert runs == [1 + 4, 1 + 4] and outputs.image_embeds.shape == (8, 16)
    ids = {name: batch[name] for name in ("image_ids", "text_ids")}
    expected = contrastive_loss(outputs.image_embeds, outputs.text_embeds, loss_type="nce", **ids)
    torch.testing.assert_close(loss, expected)
    without = contrastive_loss(outputs.image_embeds, outputs.text_embeds, loss_type="nce", text_ids=ids["text_ids"])
    assert without - expected > 1e-3
    trainer.model.eval()  # whole photographs in evaluation
    trainer.compute_loss(trainer.model, batch)
    assert runs[-1] == 8


def test_a_cell_that_sees_two_photographs_belongs_to_none():
    assert [cells_inside(7, 2, place).nonzero().flatten().tolist() for place in (0, 1)] == [[0, 1, 2], [4, 5, 6]]
    assert [cells_inside(7, 4, place).nonzero().flatten().tolist() for place in range(4)] == [[0], [2], [4], [6]]
    found = cells_of(Part(0, 2, 0, 1), 10, 3, 3, 1)  # after the position of the class
    assert found.nonzero().flatten().tolist() == [1 + 2]
    with pytest.raises(ValueError, match="mosaic_sides 4: on a grid of 3 x 3 cells some photograph has none"):
        cells_of(Part(0, 4, 1, 1), 9, 3, 3, 0)


def test_mosaics_fill_their_share_and_are_the_same_when_a_step_is_repeated():
    counts = []
    for step in range(200):
        sides, again = (drawn_sides(64, 0.5, (2, 3, 4), np.random.default_rng((0, step))) for _ in range(2))
        assert sides == again and 32 - 4 < sum(side**2 for side in sides) <= 32
        counts += sides
    assert set(counts) == {2, 3, 4}
    parts = places_in_mosaics(7, [2])
    assert parts[3] == Part(0, 2, 1, 1) and parts[4:] == [Part(1, 1, 0, 0), Part(2, 1, 0, 0), Part(3, 1, 0, 0)]
    pixels = torch.randn(9, 3, 32, 31)  # which three do not divide
    (picture,) = mosaics(pixels, [3])
    torch.testing.assert_close(picture.mean(), pixels.mean(), atol=0.02, rtol=0)
    assert picture.shape == (3, 32, 31)


def test_what_cannot_be_a_mosaic_is_refused_in_one_line(tokenizer, tmp_path):
    cases = [
        ({"grad_cache_batch_size": 4}, "a mosaic would be cut in two"),
        ({"feature_mix": 0.2}, "mosaics are of photographs, mixtures of vectors"),
        ({"freeze_image_tower": True}, "of a frozen image tower or its frozen blocks the outputs are kept"),
        ({"unfreeze_last_blocks": 1, "cached_crops": 2}, "or its frozen blocks the outputs are kept"),
        ({"mosaic_share": 0.25, "mosaic_sides": [2, 4]}, "0.25 of a batch of 8 are fewer photographs than the 4"),
        ({"mosaic_sides": [1, 2]}, "are among 2, 3 and 4"),
    ]
    for options, reason in cases:
        with pytest.raises(ValueError, match=reason):
            check_mosaics(arguments(tmp_path, **{"mosaic_share": 0.5} | options))
    args = arguments(tmp_path, mosaic_share=0.5)
    with pytest.raises(ValueError, match="mosaic_share needs a grid of cells: it reads features"):
        check_mosaics_fit(make_model(tokenizer), args)
    with pytest.raises(ValueError, match="vision_pooling is 'cls'"):
        check_mosaics_fit(make_model(tokenizer, VIT, vision_pooling="cls"), args)
    with pytest.raises(ValueError, match="mosaic_share needs photographs, but the data are features"):
        mosaic_inputs(make_model(tokenizer, VIT), args, 0, {"image_features": torch.ones(8, 16)})
    with pytest.raises(ValueError, match="mosaic_share does nothing: features take the place of images"):
        build_recipe({"dataset": "precomp", "mosaic_share": 0.5})
    with pytest.raises(ValueError, match="mosaic_sides does nothing: there are no mosaics"):
        build_recipe({"dataset": "scenes", "mosaic_sides": [2]})
