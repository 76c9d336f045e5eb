"""Processes that share the work: whatever one does alone, they do together, and equally often.

Two of them; `make soak` takes four.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hf_vse.data.tokenization import train_word_tokenizer
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.evaluation.evaluator import embed_pairs
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.frozen import check_shared
from tests.conftest import make_captions, make_feature_pairs, make_pairs
from tests.embed.test_transformers_models import CASES, save
from tests.faults.killing import SOAK
from tests.processes import in_processes
from tests.training.dual_encoders import start, trained
from tests.training.test_trainer import losses, make_model, make_trainer, weights

WORLD = 4 if SOAK else 2
PAIRS = 64  # in whole batches, so that all see the same pairs
FAMILIES = ("siglip", "blip")  # a learned bias; cross-attention that is not used
ADAPTED = {"blip, adapters": {}, "blip, adapters, cached": {"grad_cache_batch_size": 1}} if find_spec("peft") else {}
WAYS = (*FAMILIES, *ADAPTED)
HELD_OUT = (65, 13)  # captions, images: uneven shares


def processor() -> VSEProcessor:
    captions = [caption for index in range(50) for caption in make_captions(index)]
    return VSEProcessor(tokenizer=train_word_tokenizer(captions, min_count=1))


def train(folder, batch: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Two epochs of pairs of features with a learned temperature."""
    prepared = processor()
    model = make_model(prepared.tokenizer, loss_type="siglip")
    options = {"per_device_train_batch_size": batch, "max_grad_norm": 1.0, "word_dropout": 0.2}
    data = make_feature_pairs(PAIRS, captions=1)
    trainer = make_trainer(folder, prepared.tokenizer, data, model, prepared, **options)
    trainer.train()
    return losses(trainer), weights(model)


def train_whole(folder, way: str, batch: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A dual encoder of transformers, with parameters that its vectors do not need."""
    output, data = Path(folder, f"{way}-run"), make_pairs(8, captions=2)
    options = {"per_device_train_batch_size": batch, "max_grad_norm": 1.0}
    if way in ADAPTED:
        options |= {"lora_rank": 2, "learning_rate": 0.1} | ADAPTED[way]
    return trained(output, Path(folder, way.split(",")[0]), data, **options)


def embed(counted: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of a held-out split; every pass through the model is counted."""
    prepared = processor()
    model = make_model(prepared.tokenizer)
    model.register_forward_hook(lambda module, inputs, output: counted.append("pass"))
    captions, images = HELD_OUT
    data = make_feature_pairs(images, captions=captions // images)
    pairs = embed_pairs(VSEEncoder(model, prepared), data, batch_size=8, progress=False)
    return pairs.image_embeds, pairs.text_embeds


def check_process(rank: int, folder: str) -> None:
    counted: list[str] = []
    found = {"embeds": embed(counted), "passes": len(counted)}
    check_shared(Path(folder, "shared"))
    with pytest.raises(ValueError) as refused:
        check_shared(Path(folder, str(min(rank, 2))))  # process 0, process 1, and one machine of two processes
    found["refused"] = str(refused.value)
    found["training"] = train(f"{folder}/run", 4)
    for way in WAYS:
        found[way] = train_whole(folder, way, 2)
    torch.save(found, f"{folder}/{rank}.pt")


def sources(folder: Path) -> Path:
    """The models that `train_whole` starts from, in a folder."""
    for family in FAMILIES:
        torch.manual_seed(0)
        save(folder / family, CASES[family], processor().tokenizer)
    return folder


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict]:
    """What each of the processes found."""
    folder = sources(tmp_path_factory.mktemp("processes"))
    in_processes(WORLD, check_process, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_processes_train_as_one(processes, tmp_path):
    expected, expected_weights = train(tmp_path, 4 * WORLD)
    assert len(expected) == 2 * PAIRS / (4 * WORLD)
    for found in processes:
        assert found["training"][0] == pytest.approx(expected, rel=1e-4)
        for name, tensor in expected_weights.items():
            torch.testing.assert_close(found["training"][1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_processes_train_a_dual_encoder_as_one(way, processes, tmp_path):
    expected, expected_weights = train_whole(sources(tmp_path), way, 2 * WORLD)
    assert len(set(expected)) == len(expected) == 16 / WORLD
    given = weights(start(tmp_path / way.split(",")[0])[0]) if way in ADAPTED else {}
    blocks = [name for name in given if ".layers." in name and name.endswith("mlp.fc1.weight")]
    assert bool(blocks) == (way in ADAPTED) and all(
        (expected_weights[name] - given[name]).abs().max() > 1e-3 for name in blocks
    )
    for found in processes:
        assert found[way][0] == pytest.approx(expected, rel=1e-4)
        for name, tensor in expected_weights.items():
            torch.testing.assert_close(found[way][1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_every_process_passes_equally_often_through_the_model_and_has_all_vectors(processes):
    counted: list[str] = []
    images, texts = embed(counted)
    assert len({found["passes"] for found in processes}) == 1 and processes[0]["passes"] < len(counted)
    for found in processes:
        torch.testing.assert_close(found["embeds"][0], images)
        torch.testing.assert_close(found["embeds"][1], texts)


def test_a_cache_that_is_not_shared_is_refused_by_all_in_one_line(processes):
    for found in processes:
        assert "is not the same folder on all machines" in found["refused"] and "\n" not in found["refused"]
        assert "give a folder on storage that all share, or cache_frozen=false" in found["refused"]
