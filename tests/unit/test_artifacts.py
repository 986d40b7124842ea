from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from plant_dist.artifacts import (
    Manifest,
    digest_of,
    file_digest,
    git_revision,
    read_manifest,
    require_content,
    require_parent,
    short,
    written_artifact,
    written_whole,
)
from plant_dist.errors import ArtifactError, DataError

ROOT = Path(__file__).parents[2]
MANIFEST = Manifest("rank", {"rank": {"width": 8, "loss": "ranknet"}, "seed": 0}, {"gains": "aa"})


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def write_two(folder: Path, word: str) -> None:
    (folder / "inner").mkdir()
    (folder / "one.txt").write_text(word)
    (folder / "inner" / "two.txt").write_text(word)


# Whole or not at all


def test_a_folder_appears_whole_and_takes_the_place_of_the_old(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "artifact"
    for word in ("old", "new"):
        with written_whole(target) as fresh:
            assert fresh != target
            write_two(fresh, word)
            assert word == "old" or content(target)["one.txt"] == "old"
        assert content(target) == {"inner/two.txt": word, "one.txt": word}
    assert [path.name for path in target.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize("error", [DataError("bad"), KeyboardInterrupt(), ValueError("x")])
def test_an_error_leaves_the_old_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "artifact"
    with written_whole(target) as fresh:
        write_two(fresh, "old")

    def fail() -> None:
        with written_whole(target) as fresh:
            write_two(fresh, "new")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert content(target) == {"inner/two.txt": "old", "one.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".artifact.abc.partial").mkdir()
    (tmp_path / ".artifact.abc.old.partial").mkdir()
    (tmp_path / ".other.abc.partial").mkdir()
    with written_whole(tmp_path / "artifact") as fresh:
        write_two(fresh, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.abc.partial", "artifact"]


def test_everything_is_flushed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def recorded(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    with written_whole(tmp_path / "artifact") as fresh:
        write_two(fresh, "new")
    # Files and folders before they are named, the folder that holds the name after.
    assert {"one.txt", "two.txt", "inner", fresh.name} == set(synced[:-1])
    assert synced[-1] == tmp_path.name


def test_files_get_the_rights_of_the_umask(tmp_path: Path) -> None:
    for umask, file_mode, folder_mode in ((0o022, 0o644, 0o755), (0o077, 0o600, 0o700)):
        before = os.umask(umask)
        try:
            with written_whole(tmp_path / "artifact") as fresh:
                # Safetensors keeps its files private, whatever the umask.
                save_file({"x": torch.ones(2)}, fresh / "x.safetensors")
        finally:
            os.umask(before)
        assert (tmp_path / "artifact").stat().st_mode & 0o777 == folder_mode
        assert (tmp_path / "artifact" / "x.safetensors").stat().st_mode & 0o777 == file_mode


WRITER = """
import sys
from pathlib import Path
from plant_dist.artifacts import written_whole
target = Path(sys.argv[1])
number = 0
while True:
    number += 1
    with written_whole(target) as fresh:
        for name in range(20):
            (fresh / f"{name}.txt").write_text(str(number) * 1000)
    if number == 1:
        print("ready", flush=True)
"""


def test_kill_minus_nine_leaves_the_old_or_none(tmp_path: Path) -> None:
    """Processes that do nothing but write are killed at random moments."""
    random = np.random.default_rng(4)
    seen = 0
    for attempt in range(12):
        target = tmp_path / "artifact"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(target)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(random.uniform(0, 0.03)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if target.exists():
            seen += 1
            found = content(target)
            assert len(found) == 20, attempt
            # All of one writing, none of two.
            assert len(set(found.values())) == 1, attempt
            assert len(found["0.txt"]) % 1000 == 0
    assert seen > 0
    # The next writer clears up after the dead ones.
    with written_whole(tmp_path / "artifact") as fresh:
        write_two(fresh, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("writer", ["text", "numpy", "safetensors"])
def test_a_full_disk_is_one_clear_error_and_leaves_the_old(small_disk: Path, writer: str) -> None:
    target = small_disk / "artifact"
    with written_whole(target) as fresh:
        write_two(fresh, "old")
    # Errors of NumPy and safetensors carry no number that says why.
    writers = {
        "text": lambda folder: (folder / "big.txt").write_text("x" * 10**6),
        "numpy": lambda folder: np.save(folder / "big.npy", np.ones(10**6)),
        "safetensors": lambda folder: save_file({"x": torch.ones(10**6)}, folder / "big"),
    }

    def overfill() -> None:
        with written_whole(target) as fresh:
            writers[writer](fresh)

    with pytest.raises(ArtifactError, match=f"no space left on disk while writing {target}; noth"):
        overfill()
    assert content(target) == {"inner/two.txt": "old", "one.txt": "old"}
    assert [path.name for path in small_disk.iterdir()] == ["artifact"]


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with written_whole(tmp_path / "artifact") as fresh:
            (fresh / "absent" / "file").write_text("x")


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=f"{tmp_path}/file cannot be written: "):
        with written_whole(tmp_path / "file" / "artifact"):
            pass


# Manifests


def test_a_manifest_reads_back_with_the_circumstances(tmp_path: Path) -> None:
    with written_artifact(tmp_path / "ranker", replace(MANIFEST, carries={})) as fresh:
        time.sleep(0.05)
        (fresh / "weights").write_text("w")
    found = read_manifest(tmp_path / "ranker")
    assert found is not None
    assert found.digest == MANIFEST.digest
    assert (found.stage, found.settings, found.parents) == (
        MANIFEST.stage, MANIFEST.settings, MANIFEST.parents,
    )  # fmt: skip
    assert 0.05 <= found.seconds < 60
    assert found.versions["torch"] == importlib.metadata.version("torch")
    assert found.peak_memory_bytes > 10 * 2**20
    time.strptime(found.created, "%Y-%m-%dT%H:%M:%S%z")


def test_hashes_found_while_writing_are_kept(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, carries={})
    with written_artifact(tmp_path / "dataset", manifest):
        manifest.carries["tokenizer"] = "cc"
    found = read_manifest(tmp_path / "dataset")
    assert found is not None
    assert found.carries == {"tokenizer": "cc"}


def test_the_digest_is_that_of_stage_settings_parents_and_sources() -> None:
    text = (
        '["rank", {"rank": {"loss": "ranknet", "width": 8}, "seed": 0}, {"gains": "aa"}, '
        '{"encoder": "ee"}]'
    )
    manifest = replace(MANIFEST, sources={"encoder": "ee"})
    assert manifest.digest == hashlib.sha256(text.encode()).hexdigest()
    # Neither the order of the keys nor the circumstances count.
    turned = {"seed": 0, "rank": {"loss": "ranknet", "width": 8}}
    same = replace(manifest, settings=turned, seconds=9.0, created="now", carries={"x": "y"})
    assert same.digest == manifest.digest
    for other in (
        replace(manifest, stage="mig"),
        replace(manifest, settings={**turned, "seed": 1}),
        replace(manifest, parents={"gains": "ab"}),
        replace(manifest, sources={"encoder": "ef"}),
    ):
        assert other.digest != manifest.digest


def test_a_digest_is_the_same_in_every_process() -> None:
    code = (
        "from plant_dist.artifacts import digest_of; "
        "print(digest_of({'b': [1, 2.5, None], 'a': {'é': True}}))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert answers == {digest_of({"a": {"é": True}, "b": [1, 2.5, None]})}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_small_child_of_a_large_process_reports_its_own_memory() -> None:
    block = np.ones(2**28, dtype=np.uint8)
    code = "from plant_dist.artifacts import peak_memory_bytes; print(peak_memory_bytes())"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert 2**20 < int(child.stdout) < block.nbytes


def test_a_files_digest(tmp_path: Path) -> None:
    data = os.urandom(3 * 2**20 + 7)
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_no_manifest_is_no_artifact(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "absent") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"stage": "rank"}', '{"other": 1}', "3", "\udcff"])
def test_an_unreadable_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read .*run its stage again"):
        read_manifest(tmp_path)


def test_a_parent_that_changed_is_refused_with_both_digests_and_the_command() -> None:
    parent = Manifest("mig", {"mig": {}}, {})
    child = replace(MANIFEST, parents={"gains": parent.digest})
    require_parent(child, "gains", parent, "plant-dist rank")
    with pytest.raises(ArtifactError) as caught:
        require_parent(MANIFEST, "gains", parent, "plant-dist rank --config a.yaml")
    assert str(caught.value) == (
        f"the rank artifact was made from gains aa, but the gains beside it is "
        f"{parent.digest[:12]}; run: plant-dist rank --config a.yaml"
    )
    with pytest.raises(ArtifactError, match=r"made from gains \(none\)"):
        require_parent(replace(MANIFEST, parents={}), "gains", parent, "x")


def test_other_content_is_refused_with_both_digests_and_the_command() -> None:
    require_content("tokenizer", "a" * 64, "a" * 64, "here", "x")
    with pytest.raises(ArtifactError) as caught:
        require_content("tokenizer", "a" * 64, "b" * 64, "runs/x/gains", "plant-dist mig")
    assert str(caught.value) == (
        "runs/x/gains was made with tokenizer aaaaaaaaaaaa, found tokenizer bbbbbbbbbbbb; "
        "run: plant-dist mig"
    )
    assert short("c" * 64) == "c" * 12


def test_the_revision_is_that_of_git() -> None:
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        pytest.skip("not in a git repository")
    revision = git_revision()
    assert revision is not None
    assert revision.removesuffix("-dirty") == asked.stdout.strip()


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    with written_artifact(tmp_path / "ranker", MANIFEST):
        pass
    plain = json.loads((tmp_path / "ranker" / "manifest.json").read_text())
    assert plain["digest"] == MANIFEST.digest
    assert list(plain)[:3] == ["stage", "settings", "parents"]
