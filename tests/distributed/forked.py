"""Forks sets of ranks from one process that has imported what they need, which takes longest."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import PlantError
from plant_dist.runtime.collectives import end_run
from plant_dist.runtime.context import RunContext, start_run


def fork_ranks(world: int, work: Callable[[RunContext], None], precision: str = "fp32") -> None:
    """Run gloo processes of their own, each calling `work`, and wait for them to end well."""
    codes = ended_ranks(world, work, precision)
    assert not any(codes), f"ranks of {world} ended with {codes}"


def ended_ranks(
    world: int, work: Callable[[RunContext], None], precision: str = "fp32",
    words: Path | None = None,
) -> list[int]:  # fmt: skip
    """As `fork_ranks`, and return how each ended, as `ended_processes`."""
    runtime = RuntimeConfig(
        device="cpu", threads=1, processes=world, deterministic=False, precision=precision
    )

    def rank() -> None:
        context = start_run(runtime)
        work(context)
        end_run(context)

    return ended_processes(world, rank, words)


def ended_processes(
    world: int, compute: Callable[[], None], words: Path | None = None
) -> list[int]:
    """Fork processes that know of each other as a launcher would tell them, and wait for them.

    Args: words: folder for what each prints to its standard error, `rank-N.err`.
    Returns: how each ended; minus a signal's number where one did.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if words is not None:
                    path = words / f"rank-{rank}.err"
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                if world > 1:
                    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
                compute()
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            except PlantError as error:
                print(error, file=sys.stderr)
                code = error.exit_code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return _codes(children)


def beside(compute: Callable[[], None]) -> Callable[[], None]:
    """Begin something in a process of a group of its own; return what waits for it to end well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            compute()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    # By whichever comes first; it may even have ended.
    with suppress(OSError):
        os.setpgid(child, child)

    def ended() -> None:
        assert os.waitpid(child, 0)[1] == 0

    return ended


def _codes(children: list[int]) -> list[int]:
    """Wait for all; a launcher would end those that are stopped when another has failed."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        # Of this process's group: others, that it has put beside itself, are waited for elsewhere.
        child, status = os.waitpid(0, 0)
        codes[child] = os.waitstatus_to_exitcode(status)
        for other in set(children) - set(codes):
            if codes[child] and _is_stopped(other):
                os.kill(other, signal.SIGKILL)
    return [codes[child] for child in children]


def _is_stopped(child: int) -> bool:
    return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "T"
