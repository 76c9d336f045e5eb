"""Small real parts that tests share. Nothing here reaches a network."""

import gc
import logging
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # has to be known before triton is imported for the first time

import numpy as np
import PIL.Image
import pytest

if TYPE_CHECKING:
    from datasets import Dataset

# torch, datasets and transformers are imported where they are needed: this file is also read by the process that hands
# the tests to the workers, which start after it

WORDS = "red green blue yellow circle square star ring small large left right above below".split()


# How far unit vectors of one model may lie apart in two places. Bit equality is promised only where the same process
# runs the same tensors again, or a run is resumed. Weights that were loaded lie in the mapped file, behind its header,
# and so at any multiple of four or eight bytes; those of a fresh model start at a multiple of 64. MKL sums a matrix
# product in another order where a matrix does not start at a multiple of 16 bytes: seen as 3e-8 on AMD EPYC with one
# thread, gone when the weights are copied to an aligned place or MKL_CBWR=COMPATIBLE is set, the same with oneDNN
# held to another instruction set. Other processors and numbers of threads choose other kernels altogether.
SAME_VECTORS = 1e-6


def assert_same_vectors(found, expected) -> None:
    """Two arrays or tensors of unit vectors that the same weights gave."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=SAME_VECTORS)


# Files that take longest, the longest first. `make test` hands files to its workers in this order, so that no worker
# is left alone with a long one at the end.
SLOW_FILES = (
    "spaces_demo/test_demo.py",
    "spaces_demo/test_odd_requests.py",
    "spaces_demo/test_strangers.py",
    "spaces_demo/test_links.py",
    "spaces_demo/test_things.py",
    "training/test_two_processes.py",
    "search/test_every_model.py",
    "embed/test_onnx_towers.py",
    "training/test_processes.py",
    "training/test_trainer.py",
    "objectives/test_gather.py",
    "hub/test_hub.py",
    "hub/test_export.py",
    "faults/test_train.py",
    "training/test_dual_encoder_training.py",
    "evaluation/test_protocols.py",
    "hub/test_onnx_export.py",
    "model/test_ecosystem.py",
    "evaluation/test_ranks.py",
    "training/test_lora.py",
    "training/test_several_captions.py",
    "hub/test_push_format.py",
    "training/test_interpolation.py",
    "cli/test_evaluate.py",
    "training/test_scripts.py",
    "data/test_groups.py",
    "data/test_spec.py",
    "model/test_dual_encoder.py",
    "objectives/test_captions.py",
    "test_benchmarks.py",
    "faults/test_push.py",
)
# Files that share what takes long to make, which every worker makes for itself: a server, and towers as ONNX files.
TOGETHER = (("tests/spaces_demo/",), ("tests/search/test_every_model.py", "tests/embed/test_onnx_towers.py"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """With `--dist loadfile`, what is in one line of `TOGETHER` is run by one worker, as if it were one file."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group[0] for group in TOGETHER if nodeid.startswith(group)), super()._split_scope(nodeid))

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; the tests of a file keep their order."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(SLOW_FILES)}
    assert all(map(Path.is_file, place)), "SLOW_FILES names a file that is gone"
    items.sort(key=lambda item: place.get(item.path, len(place)))


MODULES = pytest.StashKey[int]()


def set_aside_what_lives() -> None:
    """What was imported is never garbage: collections pass over it. Each training asks for one of everything."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[MODULES] = len(sys.modules)


def pytest_collection_finish() -> None:
    set_aside_what_lives()
    gc.set_threshold(50_000, 20, 100)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After each file, and after a test that has imported a library."""
    if nextitem is None or nextitem.path != item.path or len(sys.modules) > item.stash[MODULES] + 50:
        set_aside_what_lives()


def make_captions(index: int, count: int = 5) -> list[str]:
    rng = np.random.default_rng(index)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 9))) for _ in range(count)]


@cache
def make_pairs(images: int, size: int = 32, captions: int = 5, first_id: int = 0) -> "Dataset":
    """Random pictures of distinct brightness with random captions, in the columns of `load_pairs`."""
    from datasets import Dataset, Features, Image, List, Value

    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(images)]
    rows = {
        "image": [PIL.Image.fromarray(each) for each in pixels],
        "image_id": list(range(first_id, first_id + images)),
        "captions": [make_captions(index, captions) for index in range(images)],
        "caption_ids": [list(range(index * captions, (index + 1) * captions)) for index in range(images)],
    }
    columns = {"image": Image(), "image_id": Value("int64"), "captions": List(Value("string"))}
    return Dataset.from_dict(rows, features=Features(columns | {"caption_ids": List(Value("int64"))}))


@cache
def make_feature_pairs(images: int, dim: int = 16, captions: int = 5) -> "Dataset":
    """The same with features that determine the captions, so that a model can learn them."""
    from datasets import List, Value

    rng = np.random.default_rng(1)
    plain = make_pairs(images, size=4, captions=captions).remove_columns("image")
    features = rng.normal(size=(images, dim)).astype(np.float32)
    return plain.add_column("image_features", list(features), feature=List(Value("float32"), length=dim))


@pytest.fixture(scope="session")
def tokenizer():
    from hf_vse.data.tokenization import train_word_tokenizer

    return train_word_tokenizer([caption for index in range(50) for caption in make_captions(index)], min_count=1)


@pytest.fixture(scope="session")
def tiny_resnet() -> dict:
    return {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
    }


@pytest.fixture(autouse=True)
def seeded():
    import torch

    if torch.accelerator.is_available():
        torch.manual_seed(0)
    else:  # the same for a CPU alone; without a GPU the other formats a stack trace each time
        torch.default_generator.manual_seed(0)


QUIET = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")


@pytest.fixture(autouse=True)
def commands_leave_no_settings():
    """Commands set what is logged, and `--quiet` variables, for their process: that of the tests after them too."""
    before = {name: os.environ.get(name) for name in QUIET}
    logging.getLogger("hf_vse").setLevel(logging.NOTSET)  # also after a fixture of more than one test has run one
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tokenizer, tiny_resnet) -> Path:
    """A saved model of 16 dimensions that reads photographs of 32 pixels; its weights are random."""
    import torch
    from transformers import CLIPImageProcessorPil

    from hf_vse.model.configuration_vse import VSEConfig
    from hf_vse.model.modeling_vse import VSEModel
    from hf_vse.model.processing_vse import VSEProcessor

    torch.manual_seed(0)
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    folder = tmp_path_factory.mktemp("tiny_model")
    VSEModel(VSEConfig(vision_config=tiny_resnet, text_config=text, projection_dim=16)).save_pretrained(folder)
    VSEProcessor(CLIPImageProcessorPil(**sides), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory, tiny_model) -> Path:
    """The towers of `tiny_model` as ONNX files, without a processor."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from hf_vse.hub.onnx_export import export_onnx
    from hf_vse.model.modeling_vse import VSEModel
    from hf_vse.model.processing_vse import VSEProcessor

    folder = tmp_path_factory.mktemp("tiny_onnx")
    export_onnx(VSEModel.from_pretrained(tiny_model), VSEProcessor.from_pretrained(tiny_model), folder, check=False)
    return folder


def save_photographs(parent: Path) -> Path:
    """A folder of twelve pictures with subfolders, metadata for some, and a file that is no picture."""
    folder = parent / "photographs"
    lines = []
    for row, picture in enumerate(make_pairs(12)["image"]):
        name = f"{'lake' if row % 2 else 'city'}/{row:02d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
        lines.append(f'{{"file_name": "{name}", "captions": ["{make_captions(row)[0]}"], "year": {2000 + row}}}')
    (folder / "metadata.jsonl").write_text("\n".join(lines[:10]), encoding="utf-8")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def make_photographs():
    return save_photographs


@pytest.fixture(scope="session")
def fast_gallery(tmp_path_factory, tiny_model) -> Path:
    """A gallery of `save_photographs` in a folder, with the text tower of `tiny_model`."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from hf_vse.cli.main import main

    folder = tmp_path_factory.mktemp("fast")
    words = ["index", str(save_photographs(folder)), str(folder / "index"), "--model", str(tiny_model)]
    assert main([*words, "--fast_queries", "--quiet"]) == 0
    return folder / "index"


@pytest.fixture
def photographs(tmp_path) -> Path:
    """See `save_photographs`."""
    return save_photographs(tmp_path)
