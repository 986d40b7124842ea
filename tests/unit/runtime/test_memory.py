from pathlib import Path

import psutil
import pytest

from plant_dist.runtime.context import RunContext
from plant_dist.runtime.memory import free_host_bytes, rooms


def group(folder: Path, version: int, limit: str, used: int, files: int) -> None:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
             2: ("memory.max", "memory.current")}[version]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {files}\n")


def test_every_group_above_this_process_that_has_a_limit_counts(tmp_path: Path) -> None:
    group(tmp_path / "slurm" / "job", 2, "1000", 700, 100)
    group(tmp_path / "slurm" / "job" / "step", 2, "max", 600, 100)
    group(tmp_path / "slurm", 2, "5000", 900, 0)
    (tmp_path / "membership").write_text("0::/slurm/job/step\n")
    assert list(rooms(tmp_path / "membership", tmp_path)) == [400, 4100]


def test_the_older_interface_has_a_tree_for_memory(tmp_path: Path) -> None:
    group(tmp_path / "memory" / "slurm" / "job", 1, "1000", 1200, 100)
    (tmp_path / "membership").write_text("9:cpu:/other\n4:memory:/slurm/job\n")
    assert list(rooms(tmp_path / "membership", tmp_path)) == [0]


@pytest.mark.parametrize("content", [None, "", "0::/\n"])
def test_no_group_and_no_such_files_limit_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "membership").write_text(content)
    assert list(rooms(tmp_path / "membership", tmp_path)) == []


def test_a_process_has_no_more_than_its_machine() -> None:
    assert 0 < free_host_bytes(RunContext()) <= psutil.virtual_memory().total
