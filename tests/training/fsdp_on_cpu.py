"""Runs a script with FSDP on CPUs, where torch can do it and accelerate does not offer it.

    torchrun --nproc-per-node 2 fsdp_on_cpu.py SCRIPT ARGUMENTS

accelerate shards a model only if its processes have accelerators; here it is told that they have.
"""

import os
import runpy
import sys

os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}
os.environ |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}

from accelerate.state import DistributedType, PartialState
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_vse.training import trainer

initialise = PartialState.__init__


def with_accelerators(self, *args, **kwargs) -> None:
    initialise(self, *args, **kwargs)
    if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


class Sharded(TrainerCallback):
    """Makes sure that what is trained is sharded."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters()), "the model is not sharded"

    def on_train_end(self, args, state, control, **kwargs):
        print(f"sharded in {state.global_step} steps")


class ShardedTrainer(trainer.VSETrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Sharded())


if __name__ == "__main__":
    PartialState.__init__ = with_accelerators
    trainer.VSETrainer = ShardedTrainer
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
