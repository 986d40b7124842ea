import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from saved_state import assert_same, flat, made, step
from torch import nn

from plant_dist.errors import ArtifactError
from plant_dist.runtime.checkpoint import Checkpoints, TrainingState
from plant_dist.runtime.context import RunContext, seed_everything

ROOT = Path(__file__).parents[3]
FILES = ("manifest.json", "state.json", "model-00001-of-00001.safetensors",
         "optimizer-00001-of-00001.safetensors", "averages-00001-of-00001.safetensors",
         "generators-00001-of-00001.safetensors")  # fmt: skip


def saved_run(folder: Path, steps: int = 3, **options: object) -> tuple[Checkpoints, list[dict]]:
    """Save a checkpoint after each step; return what each holds."""
    checkpoints = Checkpoints(folder, RunContext(), **options)  # type: ignore[arg-type]
    state, held = made(0), []
    for number in range(1, steps + 1):
        step(state)
        checkpoints.save(state, {"step": number}, number)
        held.append(flat(state))
    return checkpoints, held


def test_everything_comes_back_bit_for_bit_and_goes_on_alike(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext())
    state = made(0)
    step(state)
    step(state)
    position = {"epoch": 1, "best_metrics": {"map": 0.1 + 0.2}, "best_step": None}
    checkpoints.save(state, position, 2)
    expected = flat(state)
    step(state)
    after = flat(state)

    other = made(1)
    assert checkpoints.load(other) == position
    assert_same(flat(other), expected)
    assert other.optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    step(other)  # draws its input from the restored generator
    assert_same(flat(other), after)


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    saved_run(tmp_path)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"latest", *FILES}


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", RunContext()).load(made(0)) is None


def test_the_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext(), keep=2)
    state = made(0)
    for number in range(1, 7):
        checkpoints.save(state, {}, number, best=2 if number >= 2 else None)
    folders = sorted(path.name for path in tmp_path.glob("step-*"))
    assert folders == ["step-00000002", "step-00000005", "step-00000006"]
    assert checkpoints.best() == tmp_path / "step-00000002"
    assert checkpoints.latest() == tmp_path / "step-00000006"


def test_going_back_drops_the_steps_that_never_were(tmp_path: Path) -> None:
    checkpoints, held = saved_run(tmp_path, steps=3, keep=3)
    (tmp_path / "latest").write_text("step-00000001\n")
    state = made(1)
    assert checkpoints.load(state) == {"step": 1}
    assert_same(flat(state), held[0])
    checkpoints.save(state, {"step": 2}, 2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        "step-00000001",
        "step-00000002",
    ]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["truncated", "changed", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints, held = saved_run(tmp_path, keep=2)
    path = tmp_path / "step-00000003" / name
    content = bytearray(path.read_bytes())
    if harm == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "changed":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    else:
        path.unlink()
    state = made(1)
    logging.getLogger("plant_dist").propagate = True
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load(state) == {"step": 2}
    assert_same(flat(state), held[1])
    assert "step-00000003" in caplog.text
    assert "trying the checkpoint before it" in caplog.text


def test_no_readable_checkpoint_is_one_line(tmp_path: Path) -> None:
    checkpoints, _ = saved_run(tmp_path, keep=2)
    for path in tmp_path.glob("*/state.json"):
        path.write_text("{}")
    with pytest.raises(ArtifactError, match="none of its 2 checkpoints is readable") as error:
        checkpoints.load(made(1))
    assert "\n" not in str(error.value)


def test_another_number_of_processes_goes_on_with_masks_of_its_own(tmp_path: Path) -> None:
    _, held = saved_run(tmp_path)
    path = tmp_path / "step-00000003" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "processes": 4}))
    torch.manual_seed(0)
    before = torch.rand(())
    state = made(1)
    assert Checkpoints(tmp_path, RunContext()).load(state) == {"step": 3}
    assert_same(flat(state), held[2])
    # Neither those that this process was about to draw, nor those of the run's beginning.
    assert len({before.item(), torch.rand(()).item(), _first_draw()}) == 3


def _first_draw() -> float:
    seed_everything(0)
    return torch.rand(()).item()


def test_changed_settings_are_listed_and_those_that_matter_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {"train": {"epochs": 3, "log_steps": 1}, "seed": 0}
    checkpoints = Checkpoints(tmp_path, RunContext(), identity="a", config=before)
    state = made(0)
    step(state)
    checkpoints.save(state, {}, 1)
    comfort = {"train": {"epochs": 3, "log_steps": 9}, "seed": 0}
    logging.getLogger("plant_dist").propagate = True
    with caplog.at_level(logging.INFO):
        assert Checkpoints(tmp_path, RunContext(), identity="a", config=comfort).load(state) == {}
    assert "going on with changed settings: train.log_steps: 1 → 9" in caplog.text
    other = {"train": {"epochs": 5, "log_steps": 1}, "seed": 2}
    with pytest.raises(ArtifactError, match=r"changed: train\.epochs: 3 → 5, seed: 0 → 2"):
        Checkpoints(tmp_path, RunContext(), identity="b", config=other).load(state)


def test_another_arithmetic_is_refused_though_both_were_chosen_automatically(
    tmp_path: Path,
) -> None:
    state = made(0)
    step(state)
    Checkpoints(tmp_path, RunContext(precision="bf16"), identity="auto").save(state, {}, 1)
    with pytest.raises(ArtifactError, match=r"computed in bf16, this run would be in fp32; go on"):
        Checkpoints(tmp_path, RunContext(), identity="auto").load(state)
    Checkpoints(tmp_path, RunContext(precision="bf16"), identity="auto").load(state)


def test_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints, _ = saved_run(tmp_path)
    with pytest.raises(ArtifactError, match="holds another model") as error:
        checkpoints.load(made(1, width=7))
    assert "\n" not in str(error.value)


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    checkpoints, _ = saved_run(tmp_path)
    state = made(1)
    state.optimizer = torch.optim.AdamW(state.model.parameters())
    with pytest.raises(ArtifactError, match="optimizer of another model"):
        checkpoints.load(state)


def test_best_weights_are_the_averages_where_there_are_any(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext())
    averaged, plain = made(0), made(1, averages=False)
    checkpoints.save(averaged, {}, 1)
    checkpoints.save(plain, {}, 2)
    model = made(2).model
    checkpoints.load_weights(1, model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, averaged.averages[name])
    checkpoints.load_weights(2, model)
    assert_same(dict(model.state_dict()), dict(plain.model.state_dict()))


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    def tied(seed: int) -> TrainingState:
        state = made(seed, width=4, averages=False)
        second = nn.Linear(4, 4)
        second.weight = state.model[0].weight
        state.model = nn.Sequential(*state.model, second)
        return state

    state, other = tied(0), tied(1)
    Checkpoints(tmp_path, RunContext()).save(state, {}, 1)
    Checkpoints(tmp_path, RunContext()).load(other)
    assert other.model[0].weight is other.model[2].weight
    assert torch.equal(other.model[2].weight, state.model[2].weight)


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    checkpoints, held = saved_run(tmp_path, steps=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # The kernel refuses to let a file grow, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, before[1]))
    try:
        with pytest.raises(ArtifactError, match="step-00000002") as error:
            checkpoints.save(made(3), {"step": 2}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000001"]
    state = made(1)
    assert checkpoints.load(state) == {"step": 1}
    assert_same(flat(state), held[0])


KILLED = """
import os, signal, sys
import torch
sys.path[:0] = [{root!r}, {here!r}]
from pathlib import Path
from saved_state import made, step
from plant_dist.runtime.checkpoint import Checkpoints
from plant_dist.runtime.context import RunContext

def killing(name, call):
    # kill -9 as the given call is about to be made for the n-th time.
    count = 0
    def counted(*arguments, **options):
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    original = getattr(os, name)
    setattr(os, name, counted)

torch.set_num_threads(1)
step(made(0))  # imports what the children would each import again
folder = Path({folder!r})
for number, (name, call) in enumerate({moments!r}):
    child = os.fork()
    if child == 0:
        checkpoints = Checkpoints(folder / str(number), RunContext())
        state = made(0)
        step(state)
        checkpoints.save(state, {{"step": 1}}, 1)
        step(state)
        killing(name, call)
        checkpoints.save(state, {{"step": 2}}, 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(number, os.WTERMSIG(status) if os.WIFSIGNALED(status) else -1)
"""
# While a rank flushes its first file and those of all, rank 0 every file again, the folder; before
# the folder gets its name, before that name and `latest` are flushed, before the latter gets its
# name; and after: the step that each leaves behind.
MOMENTS = {
    ("fsync", 1): 1,
    ("fsync", 5): 1,
    ("fsync", 8): 1,
    ("fsync", 12): 1,
    ("rename", 1): 1,
    ("fsync", 13): 1,
    ("fsync", 14): 1,
    ("replace", 1): 1,
    ("fsync", 15): 2,
}


def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new(tmp_path: Path) -> None:
    script = KILLED.format(
        root=str(ROOT), here=str(Path(__file__).parent), folder=str(tmp_path), moments=list(MOMENTS)
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    died = dict(line.split() for line in ran.stdout.splitlines())
    assert died == {str(number): str(int(signal.SIGKILL)) for number in range(len(MOMENTS))}
    _, held = saved_run(tmp_path / "whole", steps=2)
    for number, (moment, left) in enumerate(MOMENTS.items()):
        folder = tmp_path / str(number)
        state = made(1)
        checkpoints = Checkpoints(folder, RunContext())
        assert checkpoints.load(state) == {"step": left}, moment
        assert_same(flat(state), held[left - 1])
        # The next save clears what the killed one left behind.
        checkpoints.save(state, {"step": 3}, 3)
        assert not list(folder.glob(".*")), moment
