"""FSDP on CPUs, where torch can do it and accelerate does not offer it.

accelerate shards a model only if its processes have accelerators; here it is told that they have.
"""

import os

from accelerate import PartialState
from accelerate.state import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_vse.training import run
from hf_vse.training.trainer import VSETrainer

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}
FSDP |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
initialise = PartialState.__init__


def with_accelerators(self, *args, **kwargs) -> None:
    initialise(self, *args, **kwargs)
    if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


class Sharded(TrainerCallback):
    """Makes sure that what is trained is sharded, and counts the steps."""

    steps: list[int] = []  # of each run

    def on_step_end(self, args, state, control, model=None, **kwargs):
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters()), "the model is not sharded"

    def on_train_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


class ShardedTrainer(VSETrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Sharded())


def shard_from_here_on() -> None:
    """Whatever this process trains; cannot be taken back."""
    os.environ |= FSDP
    PartialState.__init__ = with_accelerators
    run.VSETrainer = ShardedTrainer
