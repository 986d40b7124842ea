import random
from pathlib import Path

import numpy as np
import pytest
import torch

from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import RuntimeSetupError
from plant_dist.runtime.context import (
    choose_device,
    choose_precision,
    peak_memory_bytes,
    seed_everything,
    start_run,
)

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_CPU", "PMI_SIZE",
            "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(1))


def test_one_process_on_the_cpu() -> None:
    context = start_run(RuntimeConfig(device="cpu", precision="bf16", processes=1), seed=3)
    assert (context.rank, context.local_rank, context.world, context.is_main) == (0, 0, 1, True)
    assert (context.device, context.precision, context.seed) == (torch.device("cpu"), "bf16", 3)
    torch.use_deterministic_algorithms(False)


def test_starting_seeds_and_sets_threads() -> None:
    before = torch.get_num_threads()
    start_run(RuntimeConfig(device="cpu", threads=1, deterministic=False), seed=5)
    first = draws()
    assert torch.get_num_threads() == 1
    start_run(RuntimeConfig(device="cpu", deterministic=False), seed=5)
    assert draws() == first
    start_run(RuntimeConfig(device="cpu", deterministic=False), seed=6)
    assert draws() != first
    torch.set_num_threads(before)


def test_streams_of_a_seed_differ_in_every_generator() -> None:
    seed_everything(4, stream=0)
    main = draws()
    seed_everything(4, stream=1)
    other = draws()
    assert all(a != b for a, b in zip(main, other, strict=True))
    seed_everything(4, stream=1)
    assert draws() == other


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu_is_refused() -> None:
    with pytest.raises(RuntimeSetupError, match=r"runtime\.device is cuda.*found: cpu"):
        start_run(RuntimeConfig(device="cuda"))


@pytest.mark.parametrize("word", ["true", "1", "Y"])
def test_a_gpu_the_launcher_forbids_is_refused(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", word)
    assert choose_device("auto") == "cpu"
    with pytest.raises(RuntimeSetupError, match="ACCELERATE_USE_CPU is set"):
        choose_device("cuda")


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(RuntimeSetupError, match="fp16, which needs a GPU"):
        start_run(RuntimeConfig(device="cpu", precision="fp16"))


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "bf16", None])
def test_auto_is_bf16_where_the_cpu_has_it_and_emulated_bf16_is_named(
    feature: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = {"avx2": True, "avx512_bf16": False} | ({feature: True} if feature else {})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert choose_precision("auto", "cpu") == ("bf16" if feature else "fp32")
    assert choose_precision("bf16", "cpu") == "bf16"
    assert ("only emulates" in caplog.text) == (feature is None)
    assert choose_precision("fp32", "cpu") == "fp32"


def test_another_number_of_processes_is_refused() -> None:
    with pytest.raises(RuntimeSetupError, match=r"runtime\.processes is 2, but 1 started"):
        start_run(RuntimeConfig(device="cpu", processes=2))


def test_a_silent_fall_back_to_one_process_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    start_run(RuntimeConfig(device="cpu", deterministic=False))
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeSetupError, match="announced 2 processes, but 1 joined"):
        start_run(RuntimeConfig(device="cpu"))


def test_a_world_without_a_rank_is_refused_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeSetupError, match="RANK is not set"):
        start_run(RuntimeConfig(device="cpu"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory_is_in_bytes_and_sees_an_allocation() -> None:
    before = peak_memory_bytes()
    # Larger than everything so far, so that the peak must rise whatever ran before.
    block = np.ones(before + 2**26, dtype=np.uint8)
    grown = peak_memory_bytes() - before
    assert 0 < grown <= block.nbytes + 2**26
