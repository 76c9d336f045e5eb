"""What the tests of the commands share: data, a recipe, and its command line."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import make_captions
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


def write_data(folder: Path, captions_of: Callable = make_captions) -> Path:
    """Features and captions of 48 training and 17 validation images, and the recipe."""
    write_features(folder, train=48, dev=17, dim=12, captions_of=captions_of)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def train_arguments(data: Path, output: Path, **options) -> list[str]:
    """What `hf-vse train` or `scripts/train.py` are given."""
    options = {"data_dir": data, "output_dir": output} | options
    return [
        str(data / "recipe.yaml"),
        *(str(each) for name, value in options.items() for each in (f"--{name}", value)),
    ]


def run_script(name: str, *words: object) -> int:
    """Runs a script as a process of its own would, in this one; returns its exit code."""
    before = sys.argv
    sys.argv = [name, *map(str, words)]
    try:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        sys.argv = before
    return 0
