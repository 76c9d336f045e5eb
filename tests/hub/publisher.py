"""Publishes everything there is to publish, in a forked process that takes a fake Hub for the Hub."""

import json
import os
from pathlib import Path
from urllib.request import Request, urlopen

import datasets
import PIL.Image
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil

from hf_vse import VSEConfig, VSEModel, VSEProcessor, VSETrainer, VSETrainingArguments, load_pairs
from hf_vse.data.schema import fingerprint
from hf_vse.data.tokenization import train_word_tokenizer
from hf_vse.hub.data import push_data
from hf_vse.hub.push import leave_card, push_model
from hf_vse.hub.space import push_space
from tests.conftest import make_captions, make_pairs
from tests.hub.fake_hub import TOKEN, FakeHub

PERSONS_CARD = "---\nlicense: mit\n---\n\n# Mine\n\nA person wrote this.\n"
TEXTS = ["a red circle", "blue"]


def break_line(after: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    urlopen(Request(f"{constants.ENDPOINT}/break-after/{after}", b"", headers)).close()


def build() -> tuple[VSEModel, VSEProcessor]:
    torch.manual_seed(0)
    tokenizer = train_word_tokenizer([caption for index in range(50) for caption in make_captions(index)], min_count=1)
    vision = {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
    }
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    model = VSEModel(VSEConfig(vision_config=vision, text_config=text, projection_dim=16, loss_type="hardnce")).eval()
    return model, VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=32), tokenizer)


def leave_run(run: Path, record: dict) -> tuple[VSEModel, VSEProcessor]:
    """What a run leaves: model, record, pictures, card; and things that nobody else should get."""
    model, processor = build()
    model.config.vision_config.name_or_path = str(run / "towers" / "resnet")
    model.save_pretrained(run)
    processor.save_pretrained(run)
    (run / "metrics.json").write_text(json.dumps(record))
    (run / "recipe.yaml").write_text(f"data_dir: {run}\n")
    for name in ("training_curves.png", "retrieval.png"):
        PIL.Image.new("RGB", (8, 8)).save(run / name)
    leave_card(run)
    (run / "stages" / "train").mkdir(parents=True)
    for name in ("pytorch_model.bin", "training_args.bin", "stages/train/optimizer.pt", "notes.txt", "emissions.csv"):
        (run / name).write_text("emissions\n0.001\n")
    return VSEModel.from_pretrained(run).eval(), VSEProcessor.from_pretrained(run)


def publish_models(folder: Path, record: dict, seen: dict) -> None:
    api, run = HfApi(), folder / "run"
    model, processor = leave_run(run, record)
    outputs = model(**processor(images=[PIL.Image.new("RGB", (40, 50), "red")], text=TEXTS))
    save_file({"image": outputs.image_embeds, "text": outputs.text_embeds}, folder / "local.safetensors")
    break_line(after=1)
    try:
        push_model(run, "org/pushed", private=True)
    except ConnectionError as error:
        seen["broken"] = str(error)
        seen["visible"] = api.list_repo_files("org/pushed")
    seen["address"] = push_model(run, "org/pushed", private=True)
    seen["address again"] = push_model(run, "org/pushed")

    processor.push_to_hub("org/methods")
    model.push_to_hub("org/methods")
    processor.push_to_hub("org/methods")

    api.create_repo("org/persons")
    api.upload_file(path_or_fileobj=PERSONS_CARD.encode(), path_in_repo="README.md", repo_id="org/persons")
    push_model(run, "org/persons")

    with torch.no_grad():
        model.visual_projection.weight.add_(1)
    model.push_to_hub("org/changed")
    try:
        push_model(run, "org/refused", token="hf_wrong")
    except ValueError as error:
        seen["refused"] = str(error)


def train_and_publish(folder: Path) -> None:
    model, processor = build()
    pairs = make_pairs(16)
    args = VSETrainingArguments(
        output_dir=str(folder / "trained"), num_train_epochs=2, per_device_train_batch_size=8, disable_tqdm=True,
        push_to_hub=True, hub_model_id="org/trained", logging_steps=1,
    )  # fmt: skip
    trainer = VSETrainer(model, args, train_dataset=pairs, eval_dataset=pairs, processing_class=processor)
    trainer.train()
    trainer.push_to_hub(dataset="org/pairs", license="apache-2.0")


def publish_data(folder: Path, seen: dict) -> None:
    """Pictures that lie in files, two of which are broken."""
    photos = folder / "photos" / "train"
    photos.mkdir(parents=True)
    lines = []
    for index in range(8):
        PIL.Image.new("RGB", (20, 20), (index * 30, 0, 0)).save(photos / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "captions": make_captions(index)}))
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    splits = load_pairs("imagefolder", data_dir=folder / "photos")
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:40])
    (photos / "5.png").unlink()
    splits["test"] = make_pairs(4, first_id=100)
    break_line(after=1)
    try:
        push_data(splits, "org/pairs", license="cc-by-4.0", source="flickr8k")
    except ConnectionError as error:
        seen["data broken"] = str(error)
    for _ in range(2):
        seen["data address"] = push_data(splits, "org/pairs", license="cc-by-4.0", source="flickr8k")
    splits["train"] = splits["train"].select([0, 1, 2, 4, 6, 7])
    kinds = {"kept": splits, "loaded": load_pairs("org/pairs"), "plain": datasets.load_dataset("org/pairs")}
    for kind, found in kinds.items():
        seen[kind] = {name: fingerprint(each["image_id"][:], each["captions"][:]) for name, each in found.items()}
    seen["pixels"] = [list(kinds["plain"]["train"][row]["image"].getpixel((0, 0))) for row in range(6)]
    table = kinds["plain"]["train"].with_format("arrow")[:]["image"]
    seen["image paths"] = [each["path"] for each in table.to_pylist()]


def publish_space(folder: Path) -> None:
    demo = folder / "demo"
    (demo / "__pycache__").mkdir(parents=True)
    (demo / "__pycache__" / "app.pyc").write_text("")
    for name in ("app.py", "requirements.txt", ".secret"):
        (demo / name).write_text("x = 1\n")
    (demo / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\napp_file: app.py\n---\n\n# Demo\n")
    push_space(demo, "org/demo", model="org/pushed", dataset="org/pairs")


def publish(hub: FakeHub, folder: Path, record: dict) -> int:
    """Writes what it saw to `folder / "seen.json"` and `folder / "local.safetensors"`."""
    hub.take_over(folder / "cache")
    os.environ["HF_TOKEN"] = TOKEN
    seen: dict = {}
    publish_models(folder, record, seen)
    publish_data(folder, seen)
    train_and_publish(folder)
    publish_space(folder)
    (folder / "seen.json").write_text(json.dumps(seen))
    return 0
