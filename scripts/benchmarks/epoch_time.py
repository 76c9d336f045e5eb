"""Seconds per epoch: `VSETrainer` on the paper's recipe, compared with a plain loop over a packed GRU.

    python scripts/benchmarks/epoch_time.py --data_dir DIR [--output epoch_time.json]

The plain loop is the usual code: word-by-word vocabulary lookup, `pack_padded_sequence`, `torch.optim.Adam`. Both
train the same architecture (features -> 1024 -> head, 300-d words, GRU 1024 -> head) on the same data with the same
batch size. Their steps alternate, so that load on the machine affects both.
"""

import argparse
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from measuring import matmul_rate, operations_of, record
from torch import nn
from transformers import TrainerCallback

from hf_vse.data.sources import load_pairs
from hf_vse.evaluation.environment import environment
from hf_vse.training.build import build_model, build_processor
from hf_vse.training.recipe import read_recipe
from hf_vse.training.run import training_arguments
from hf_vse.training.trainer import VSETrainer

RECIPE = Path(__file__).parents[1] / "recipes" / "paper" / "convse_features.yaml"
BATCH = 128


class PlainEncoder(nn.Module):
    def __init__(self, words: int, features: int):
        super().__init__()
        self.image = nn.Linear(features, 1024)
        self.words = nn.Embedding(words, 300)
        self.gru = nn.GRU(300, 1024, batch_first=True)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(1024, 2048, bias=False), nn.ReLU(), nn.Linear(2048, 1024)) for _ in range(2)
        )

    def forward(self, features, ids, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.words(ids), lengths, batch_first=True)
        last = self.gru(packed)[1][0]
        return F.normalize(self.heads[0](self.image(features)), dim=1), F.normalize(self.heads[1](last), dim=1)


class PlainPairs(torch.utils.data.Dataset):
    """A caption and the features of its image; words are looked up one by one."""

    def __init__(self, split):
        self.captions = [caption for of_image in split["captions"][:] for caption in of_image]
        self.owner = [row for row, of_image in enumerate(split["captions"][:]) for _ in of_image]
        self.features = np.stack(split.with_format("numpy")["image_features"][:]).astype(np.float32)
        self.features /= np.linalg.norm(self.features, axis=1, keepdims=True)
        counts = Counter(word for caption in self.captions for word in self.split(caption))
        kept = ["<pad>", "<unk>", "<start>", "<end>", *(word for word, count in counts.items() if count >= 4)]
        self.vocabulary = {word: number for number, word in enumerate(kept)}

    @staticmethod
    def split(caption: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]+", caption.lower())

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        words = ["<start>", *self.split(self.captions[index]), "<end>"]
        ids = torch.tensor([self.vocabulary.get(word, 1) for word in words])
        return torch.from_numpy(self.features[self.owner[index]]), ids


def sorted_batch(pairs):
    pairs.sort(key=lambda pair: len(pair[1]), reverse=True)
    lengths = torch.tensor([len(ids) for _, ids in pairs])
    ids = nn.utils.rnn.pad_sequence([ids for _, ids in pairs], batch_first=True)
    return torch.stack([features for features, _ in pairs]), ids, lengths


def plain_steps(split):
    """Yields the seconds of each step, including data loading."""
    torch.manual_seed(0)
    pairs = PlainPairs(split)
    model = PlainEncoder(len(pairs.vocabulary), pairs.features.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    while True:
        loader = torch.utils.data.DataLoader(pairs, BATCH, shuffle=True, collate_fn=sorted_batch, drop_last=True)
        start = time.perf_counter()
        for batch in loader:
            images, texts = model(*batch)
            logits = images @ texts.T / 0.1
            own = torch.arange(len(logits))
            loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            yield time.perf_counter() - start
            start = time.perf_counter()


class StepTimes(TrainerCallback):
    """Times every step of the trainer and runs one step of the plain loop after each."""

    def __init__(self, other):
        self.other = other
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.ours.append(time.perf_counter() - self.start)
        self.theirs.append(next(self.other))
        self.start = time.perf_counter()


def gflop_of_a_step(trainer: VSETrainer) -> float:
    """GFLOP of one of our steps, forward and backward."""
    batch = next(iter(trainer.get_train_dataloader()))
    operations = operations_of(lambda: trainer.compute_loss(trainer.model, batch).backward())
    trainer.model.zero_grad()
    return operations / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder with Flickr8k's captions file and features")
    parser.add_argument(
        "--features", default="features_efficientnet_lite2.safetensors", help="features file in data_dir"
    )
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each [60]")
    parser.add_argument("--bf16", action="store_true", help="train hf_vse in bfloat16, for CPUs that are fast at it")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    where = environment()
    recipe = read_recipe(RECIPE, dataset="flickr8k", data_dir=arguments.data_dir, features=arguments.features)
    splits = load_pairs("flickr8k", data_dir=arguments.data_dir, features=arguments.features)
    stage = recipe.stage(recipe.stages[1] | {"per_device_train_batch_size": BATCH})
    processor = build_processor(stage.model, splits["train"])
    warmup = 5
    with tempfile.TemporaryDirectory() as folder:
        values = {"output_dir": folder, "max_steps": arguments.steps + warmup, "eval_strategy": "no"}
        values |= {"save_strategy": "no", "bf16": arguments.bf16, "logging_steps": 1000, "disable_tqdm": True}
        args = training_arguments(recipe.stage(stage.values | values), Path(folder))
        model = build_model(stage.model, processor, splits["train"])
        trainer = VSETrainer(model, args, train_dataset=splits["train"], processing_class=processor)
        times = StepTimes(plain_steps(splits["train"]))
        products = gflop_of_a_step(trainer)
        trainer.add_callback(times)
        trainer.train()
    steps = sum(len(captions) for captions in splits["train"]["captions"][:]) // BATCH
    ours, plain = (median(seconds[warmup:]) for seconds in (times.ours, times.theirs))
    rates = {str(dtype): round(matmul_rate(dtype) / 1e9) for dtype in (torch.float32, torch.bfloat16)}
    result = {
        "what": "median seconds of a training step, batch 128, GRU 1024 with heads, Flickr8k features; in turns",
        "hf_vse_step": round(ours, 4),
        "plain_packed_gru_step": round(plain, 4),
        "hf_vse_epoch": round(ours * steps, 1),
        "plain_packed_gru_epoch": round(plain * steps, 1),
        "ratio": round(ours / plain, 3),
        "bf16": arguments.bf16,
        "gflop_of_a_step": round(products, 1),
        "matmul_gflops": rates,
        "hf_vse_epoch_at_matmul_rate": round(products * steps / rates[str(torch.float32)], 1),
        "steps": arguments.steps,
        "environment": where,
    }
    record(result, arguments.output)


if __name__ == "__main__":
    main()
