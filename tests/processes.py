"""Several processes that share work. They are forked: a fresh process takes seconds to import what it needs."""

import gc
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from accelerate import PartialState


def in_processes(world: int, work: Callable, *args: Any) -> None:
    """Calls `work(rank, *args)` in each of `world` processes of one gloo group; raises what any of them raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_method = "spawn" if torch.cuda.is_available() else "fork"  # autograd's threads of a GPU survive no fork
    mp.start_processes(member, args=(world, port, work, args), nprocs=world, start_method=start_method)


def member(rank: int, world: int, port: int, work: Callable, args: tuple) -> None:
    gc.freeze()  # or each looks through all objects of the process it was forked from again and again
    torch.set_num_threads(1)
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()}
    PartialState._reset_state()  # that of the process this one was forked from
    assert PartialState(cpu=True).num_processes == world
    work(rank, *args)
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
