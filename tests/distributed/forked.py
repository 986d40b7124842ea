"""Forks sets of ranks from one process that has imported what they need, which takes longest."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable

from plant_dist.config.schema import RuntimeConfig
from plant_dist.runtime.collectives import end_run
from plant_dist.runtime.context import RunContext, start_run


def fork_ranks(world: int, work: Callable[[RunContext], None], precision: str = "fp32") -> None:
    """Run gloo processes of their own, each calling `work`, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runtime = RuntimeConfig(
        device="cpu", threads=1, processes=world, deterministic=False, precision=precision
    )
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if world > 1:
                    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
                context = start_run(runtime)
                work(context)
                end_run(context)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), f"ranks of {world} ended with {codes}"
