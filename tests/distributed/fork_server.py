"""A process that has imported what the scripts here need, and forks the ranks of each from itself.

Imports take longer than most of these scripts, and every rank of every script would pay for them.
A request a line on standard input, an answer a line on standard output (`Server` speaks it):
    {"script": "two_ranks.py", "world": 2, "arguments": […], "words": FOLDER} -> {"process": 7}
    {"wait": 7} -> {"codes": [0, 0]}
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
# What is not installed is not needed: its tests are skipped.
NEEDED = ("deepspeed", "torchrec", "peft", "plant_dist.train.contextual_task",
          "plant_dist.train.shortlists", "tiny_task")  # fmt: skip
CODES = "codes.json"


class Ended(NamedTuple):
    """How the ranks of a script ended, minus a signal's number where one did; what they said."""

    codes: list[int]
    words: str


class Server:
    """The process, from `start` to `stop`, as the tests see it."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
        # Without the first two, Accelerate and DeepSpeed look for GPUs; ranks share cores.
        named = {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
                 "PYTHONPATH": path}  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, __file__], env={**os.environ, **named}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def start(self, script: str, folder: Path, *options: str, world: int = 2) -> int:
        """Start the ranks of a script with a folder for what they find; return a handle."""
        words = folder / "words"
        words.mkdir(exist_ok=True, parents=True)
        arguments = ["--folder-of-results", str(folder), *options]
        asked = {"script": script, "world": world, "arguments": arguments, "words": str(words)}
        return int(self._ask(asked, 300)["process"])

    def wait(self, process: int, folder: Path, seconds: float = 1200) -> Ended:
        """Wait until the ranks that `start` has started have ended."""
        codes = self._ask({"wait": process}, seconds)["codes"]
        paths = sorted((folder / "words").glob("rank-*.err"))
        return Ended(codes, "\n".join(path.read_text() for path in paths))

    def run(self, script: str, folder: Path, *options: str, world: int = 2) -> Ended:
        """Start, and wait."""
        return self.wait(self.start(script, folder, *options, world=world), folder)

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(300)

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        assert ready, f"no answer to {request} within {seconds} s"
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def begin(script: str, world: int, arguments: list[str], words: str) -> int:
    """Fork a process that forks the ranks of a script and ends when they have; return its id."""
    from forked import ended_processes

    child = os.fork()
    if child:
        return child
    try:
        # Nothing but answers goes to standard output.
        os.dup2(2, 1)
        sys.argv = [script, *arguments]
        (Path(words) / CODES).unlink(missing_ok=True)
        codes = ended_processes(
            world, lambda: runpy.run_path(str(HERE / script), run_name="__main__"), Path(words)
        )
        (Path(words) / CODES).write_text(json.dumps(codes))
    finally:
        os._exit(0)


def main() -> None:
    for name in NEEDED:
        with suppress(ImportError):
            importlib.import_module(name)
    places: dict[int, Path] = {}
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        if "wait" in asked:
            os.waitpid(asked["wait"], 0)
            answer: dict[str, Any] = {"codes": json.loads(places[asked["wait"]].read_text())}
        else:
            process = begin(**asked)
            places[process] = Path(asked["words"]) / CODES
            answer = {"process": process}
        print(json.dumps(answer), flush=True)
    # Python takes long to put away what was imported.
    os._exit(0)


if __name__ == "__main__":
    main()
