"""The demo is a folder of its own: its modules are found as they are when app.py runs."""

import io
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import CLIPImageProcessorPil

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from tests.conftest import make_pairs

DEMO = Path(__file__).parents[2] / "spaces_demo"
sys.path.insert(0, str(DEMO))
PHOTOGRAPHS = 11


def png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def save_model(folder: Path, tokenizer, tiny_resnet: dict, seed: int) -> Path:
    torch.manual_seed(seed)
    text = {"model_type": "vse_gru_text", "vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    config = VSEConfig(vision_config=tiny_resnet, text_config=text, projection_dim=16, loss_type="nce")
    VSEModel(config).eval().save_pretrained(folder)
    VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer, tiny_resnet) -> Path:
    return save_model(tmp_path_factory.mktemp("demo") / "vse-tiny", tokenizer, tiny_resnet, seed=0)


@pytest.fixture(scope="session")
def gallery_rows() -> list[dict]:
    """Eleven photographs, and in their middle a broken one."""
    pairs = make_pairs(PHOTOGRAPHS, size=32)
    rows = [{"image": {"bytes": png(row["image"]), "path": None}, "captions": row["captions"]} for row in pairs]
    return [*rows[:4], {"image": {"bytes": b"no picture", "path": None}, "captions": ["a broken one"]}, *rows[4:]]


@pytest.fixture(scope="session")
def parquet(tmp_path_factory, gallery_rows) -> Path:
    file = tmp_path_factory.mktemp("photographs") / "secret_gallery.parquet"
    columns = Features({"image": Image(decode=False), "captions": List(Value("string"))})
    Dataset.from_list(gallery_rows, features=columns).cast_column("image", Image()).to_parquet(file)
    return file
