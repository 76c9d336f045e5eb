"""Two ONNX files against the model they were exported from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_vse.embed.adapters.onnx_towers import open_session
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from tests.conftest import make_captions, make_pairs

pytest.importorskip("onnxruntime")

TEXTS = [*make_captions(0), "red", *make_captions(1)]


def rows() -> list[dict]:
    return [{"image": image} for image in make_pairs(5)["image"]]


def assert_same_vectors(encoder, tiny_model) -> None:
    model = VSEEncoder(VSEModel.from_pretrained(tiny_model), VSEProcessor.from_pretrained(tiny_model))
    found, expected = encode_images(encoder, rows(), 2), encode_images(model, rows())
    torch.testing.assert_close(found.embeds, expected.embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encode_texts(encoder, TEXTS, 3), encode_texts(model, TEXTS), rtol=1e-4, atol=1e-5)


def test_towers_give_the_vectors_of_the_model(tiny_onnx, tiny_model, tmp_path):
    assert_same_vectors(load_encoder(f"{tiny_onnx}@{tiny_model}"), tiny_model)
    shutil.copytree(tiny_onnx, tmp_path / "onnx")
    VSEProcessor.from_pretrained(tiny_model).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), device="cpu")
    assert_same_vectors(encoder, tiny_model)
    assert encoder.facts() == {
        "family": "onnx",
        "dimensions": 16,
        "files": ["image_encoder.onnx", "text_encoder.onnx"],
        "runs_on": "CPUExecutionProvider",
        "max_text_length": 64,
        "texts_cut": 0,
    }


def test_digest_names_the_files(tiny_onnx, tiny_model, tmp_path):
    shutil.copytree(tiny_onnx, tmp_path, dirs_exist_ok=True)
    same, changed = (load_encoder(f"{tmp_path}@{tiny_model}") for _ in range(2))
    assert same.digest == load_encoder(f"{tiny_onnx}@{tiny_model}").digest
    (tmp_path / "text_encoder.onnx.data").write_bytes(b"weights beside a large file")
    assert changed.digest != same.digest


def linear_tower(path: Path, name: str, shape: list, kind: int, outputs: tuple[str, ...] = ("vectors",)) -> None:
    """The first `dim` numbers of each row, as another exporter might have written them."""
    from onnx import TensorProto, helper, save

    start, stop = (
        helper.make_tensor("start", TensorProto.INT64, [1], [0]),
        helper.make_tensor("stop", TensorProto.INT64, [1], [4]),
    )
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Flatten", [name], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "stop", "axis"], ["part"]),
        *(helper.make_node("Cast", ["part"], [output], to=TensorProto.FLOAT) for output in outputs),
    ]
    found = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 4]) for output in outputs]
    graph = helper.make_graph(
        nodes, "tower", [helper.make_tensor_value_info(name, kind, shape)], found, [start, stop, axis]
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture
def foreign(tmp_path) -> Path:
    from onnx import TensorProto

    linear_tower(tmp_path / "vision_model.onnx", "pixel_values", ["batch", 3, 32, 32], TensorProto.FLOAT16)
    linear_tower(tmp_path / "text_model.onnx", "input_ids", ["batch", 9], TensorProto.INT32)
    return tmp_path


def test_files_of_another_exporter(foreign, tiny_model):
    """Their precision is met, their only output taken, and sentences are padded to their fixed length."""
    encoder = load_encoder(f"{foreign}@{tiny_model}")
    processor = VSEProcessor.from_pretrained(tiny_model)
    assert encoder.facts()["max_text_length"] == 9
    expected = processor(text=["red green"])["input_ids"][0].tolist()[:4]
    np.testing.assert_array_equal(encoder.encode_texts(["red green", "red"])[0], expected)
    pixels = processor(images=[row["image"] for row in rows()])["pixel_values"]
    found = encoder.encode_images(encoder.prepare_images([row["image"] for row in rows()]))
    np.testing.assert_array_equal(found, pixels.flatten(1)[:, :4].half().float())


def test_files_that_do_not_fit_are_named(foreign, tiny_onnx, tiny_model):
    from onnx import TensorProto

    linear_tower(foreign / "text_model.onnx", "words", ["batch", 9], TensorProto.INT64)
    with pytest.raises(
        ValueError, match="text_model.onnx asks for words, the processor gives attention_mask, input_ids"
    ):
        load_encoder(f"{foreign}@{tiny_model}").encode_texts(["red"])
    linear_tower(foreign / "text_model.onnx", "input_ids", ["batch", 9], TensorProto.INT64, ("one", "two"))
    with pytest.raises(
        ValueError, match="text_model.onnx gives one, two; call the vectors of the common space `embeds`"
    ):
        load_encoder(f"{foreign}@{tiny_model}").encode_texts(["red"])
    (foreign / "text_model.onnx").write_bytes(b"no graph")
    with pytest.raises(OSError, match="text_model.onnx cannot be loaded .*; export it again"):
        load_encoder(f"{foreign}@{tiny_model}")
    with pytest.raises(OSError, match="save its processor into the folder, or name that of the model: FOLDER@MODEL"):
        load_encoder(str(foreign))
    with pytest.raises(ValueError, match="dtype='bfloat16' has no effect on"):
        load_encoder(f"{tiny_onnx}@{tiny_model}", dtype="bfloat16")
    (foreign / "text_model.onnx").unlink()
    with pytest.raises(OSError, match="does not hold two ONNX files that are known"):
        load_encoder(str(foreign), kind="onnx")


@pytest.mark.parametrize(("device", "number"), [(None, 0), ("cuda", 0), ("cuda:1", 1), (torch.device("cuda:3"), 3)])
def test_the_number_of_a_gpu_reaches_onnxruntime(device, number, monkeypatch):
    asked = []
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda file, providers: asked.append(providers))
    open_session(Path("some.onnx"), device)
    assert asked == [[("CUDAExecutionProvider", {"device_id": number}), "CPUExecutionProvider"]]
    open_session(Path("some.onnx"), "cpu")
    assert asked[1] == ["CPUExecutionProvider"]
