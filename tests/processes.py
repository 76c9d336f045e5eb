"""Processes that are forked: a fresh one takes seconds to import what it needs."""

import gc
import logging
import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from accelerate import PartialState


def warn_as_a_command() -> None:
    """Deprecations are errors in pytest and not in what is forked from it, which stands for a command."""
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)


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
    warn_as_a_command()
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()}
    PartialState._reset_state()  # that of the process this one was forked from
    assert PartialState(cpu=True).num_processes == world
    work(rank, *args)
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def start_fork(log: Path, work: Callable, *args: Any) -> BaseProcess:
    """Starts `work(*args)` with one thread as a command: leader of a group of its own, what it writes goes to the log.

    Its exit code is what `work` returns.
    """
    log.write_text("")
    process = multiprocessing.get_context("fork").Process(target=apart, args=(log, work, args), daemon=True)
    process.start()
    return process


def apart(log: Path, work: Callable, args: tuple) -> None:
    os.setsid()
    gc.freeze()
    torch.set_num_threads(1)  # OpenMP does not survive a fork
    logging.getLogger().handlers.clear()  # those of pytest
    warn_as_a_command()
    output = os.open(log, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)
    sys.exit(work(*args))


def run_fork(log: Path, work: Callable, *args: Any) -> str:
    """What `work(*args)` has written when it has ended well."""
    process = start_fork(log, work, *args)
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    return log.read_text()
