"""What the tests of the commands share: data, a recipe, and its command line."""

import os
import subprocess
from pathlib import Path

import torch

from tests.training.tiny_runs import write_features

SCRIPTS = Path(__file__).parents[2] / "scripts"
RECIPE = """
dataset: precomp
projection_dim: 16
text_config: {word_dim: 8}
min_word_count: 1
num_train_epochs: 2
per_device_train_batch_size: 8
per_device_eval_batch_size: 14  # 85 validation captions: four batches of 43 on one process, three of 42 on another
learning_rate: 1e-2
lr_scheduler_type: constant
logging_steps: 1
disable_tqdm: true
"""


def write_data(folder: Path) -> Path:
    """Features and captions of 48 training and 17 validation images, and the recipe."""
    write_features(folder, train=48, dev=17, dim=12)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def train_arguments(data: Path, output: Path, **options) -> list[str]:
    """What `hf-vse train` or `scripts/train.py` are given."""
    options = {"data_dir": data, "output_dir": output} | options
    return [
        str(data / "recipe.yaml"),
        *(str(each) for name, value in options.items() for each in (f"--{name}", value)),
    ]


def environment() -> dict[str, str]:
    """Of a process that computes with as many threads as this one, so that it gives the same bits."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def run(command: list, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done
