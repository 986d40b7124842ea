"""Jobs on a real SLURM of three nodes: two nodes as one process, and all that can go wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster import wait_until
from shared_site import TRAINING, Site, last_loss
from tiny_corpus import ROOT

pytestmark = pytest.mark.slurm
# Over the four GPUs that a corpus's file asks for.
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")


def records(run: Path, launch: str) -> list[dict[str, Any]]:
    paths = sorted((run / "logs" / launch).glob("rank-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def wait_for_checkpoint(site: Site, job: str, run: Path) -> None:
    """Wait until a job is in the middle of its training."""
    latest = run / "checkpoints" / "train" / "latest"
    wait_until(latest.exists, 180, lambda: f"no checkpoint: {site.output(job)}")


def engine(name: str) -> tuple[str, ...]:
    """Settings that train under an engine, where DeepSpeed is installed."""
    return (f"runtime.engine={name}",) if importlib.util.find_spec("deepspeed") else ()


def assert_engine(log: str, name: str) -> None:
    assert (f"engine: {name}, offload none" in log) == (name != "ddp" and bool(engine(name)))


def test_two_nodes_train_as_one_process(site: Site) -> None:
    run = site.work / "two"
    words = ("runtime.threads=1", *TRAINING)
    job = site.submit("mimicfull.sh", *TWO_NODES, settings=words, PLANT_OUTPUT=str(run))
    ended = site.cluster.wait_for(job)
    said = site.output(job)
    assert ended["JobState"] == "COMPLETED", said
    assert f"tensorboard --logdir {run}/tensorboard" in said
    first, second = site.cluster.host("n1"), site.cluster.host("n2")
    where = "n1" if site.cluster.networks else "127.0.0.1"
    assert f"2 processes on n[1-2], restart 0, meeting at {where}:" in said
    found = [(one["node"], one["world"], one["code"]) for one in records(run, f"slurm-{job}.0")]
    assert found == [(first, 2, 0), (second, 2, 0)]
    assert last_loss(run) == pytest.approx(last_loss(site.straight), abs=1e-5)
    # Each rank's lines stand in its own file, with date, rank and node.
    log = (run / "logs" / f"slurm-{job}.0" / "rank-1.log").read_text()
    assert f" [rank 1 {second}] launch slurm-" in log
    assert f"SLURM job {job}" in log


def test_a_preempted_job_saves_is_requeued_and_resumes(site: Site) -> None:
    run = site.half_way("preempted")
    # Two nodes under ZeRO, too, end with the loss of one process.
    words = (*engine("zero2"), *TRAINING)
    # SLURM says all words again: a job that must begin anew may do so once.
    job = site.submit(
        "mimicfull.sh", *TWO_NODES, "--exclusive", settings=words, arguments=("--force",),
        PLANT_COMMAND="train", PLANT_OUTPUT=str(run),
    )  # fmt: skip
    wait_for_checkpoint(site, job, run)
    urgent = site.cluster.run(
        "sbatch", "--parsable", "-p", "urgent", "-N3", "--exclusive", "-o", "/dev/null",
        "--wrap", "sleep 2",
    ).strip()  # fmt: skip
    site.cluster.wait_for(urgent)
    ended = site.cluster.wait_for(job)
    said = site.output(job)
    assert ended["JobState"] == "COMPLETED", said
    assert ended["Restarts"] == "1"
    assert "SIGUSR1: the ranks are asked to save and stop" in said
    assert "classifier stopped by" in said
    assert "requeued; it goes on from its last checkpoint" in said
    assert "restart 1" in said
    first = records(run, f"slurm-{job}.0")
    assert 75 in [one["code"] for one in first]
    log = (run / "logs" / f"slurm-{job}.1" / "rank-0.log").read_text()
    assert "classifier: going on after step" in log
    assert_engine(log, "zero2")
    assert "SLURM job " + job + ", SLURM restart 1" in log
    assert last_loss(run) == pytest.approx(last_loss(site.straight), abs=1e-5)


@pytest.mark.parametrize(("fate", "under"), [("hangs", "ddp"), ("dies", "zero3")])
def test_a_job_whose_node_is_lost_is_requeued_and_finishes(
    site: Site, fate: str, under: str
) -> None:
    run = site.half_way(f"node_{fate}")
    job = site.submit(
        "mimicfull.sh", *TWO_NODES, settings=(*engine(under), *TRAINING), PLANT_COMMAND="train",
        PLANT_OUTPUT=str(run),
    )  # fmt: skip
    wait_for_checkpoint(site, job, run)
    victim = nodes_of(site, site.cluster.job(job))[1]
    [rank] = [one["process"] for one in records(run, f"slurm-{job}.0") if one["rank"] == 1]
    # The rank was started by the step's own daemon, which dies with its machine.
    status = Path(f"/proc/{rank}/status").read_text().splitlines()
    [step] = [int(line.split()[1]) for line in status if line.startswith("PPid:")]
    site.cluster.kill_node(victim)
    if fate == "dies":
        os.kill(step, signal.SIGKILL)
        os.kill(rank, signal.SIGKILL)
    else:
        # Connections stay open and nobody answers: only SLURM can end this.
        os.kill(rank, signal.SIGSTOP)
    try:
        ended = site.cluster.wait_for(job)
    finally:
        site.cluster.start_node(victim)
        if fate == "hangs":
            os.kill(rank, signal.SIGKILL)
    said = site.output(job)
    assert ended["JobState"] == "COMPLETED", said
    assert ended["Restarts"] == "1"
    assert victim not in nodes_of(site, ended)
    assert_engine((run / "logs" / f"slurm-{job}.1" / "rank-0.log").read_text(), under)
    assert last_loss(run) == pytest.approx(last_loss(site.straight), abs=1e-5)


def nodes_of(site: Site, job: dict[str, str]) -> list[str]:
    return site.cluster.run("scontrol", "show", "hostnames", job["NodeList"]).split()


def test_a_failing_rank_fails_the_job_and_its_words_come_first(site: Site, tmp_path: Path) -> None:
    run = site.half_way("failing")
    # The second rank alone is asked for what a processor cannot do.
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$RANK" = 1 ] && set -- "$@" --set runtime.precision=fp16\n'
        f'exec {site_python(site)} "$@"\n'
    )
    python.chmod(0o755)
    (tmp_path / "site.env").write_text(
        (site.work / "site.env").read_text() + f"PLANT_PYTHON={python}\n"
    )
    job = site.submit(
        "mimicfull.sh", *TWO_NODES, PLANT_COMMAND="train", PLANT_OUTPUT=str(run),
        PLANT_SITE=str(tmp_path / "site.env"),
    )  # fmt: skip
    ended = site.cluster.wait_for(job)
    said = site.output(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "5:0"), said
    verdict = said[said.index("status: ") :].splitlines()
    assert verdict[0].startswith(f"status: rank 1 on {site.cluster.host('n2')}: ")
    assert "runtime.precision is fp16, which needs a GPU" in verdict[0]
    assert any(line.startswith("  | ") and "RuntimeSetupError" in line for line in verdict)


def test_a_killed_rank_fails_the_job_and_is_named(site: Site) -> None:
    run = site.half_way("killed")
    job = site.submit(
        "mimicfull.sh", *TWO_NODES, settings=TRAINING, PLANT_COMMAND="train", PLANT_OUTPUT=str(run)
    )
    wait_for_checkpoint(site, job, run)
    [victim] = [one for one in records(run, f"slurm-{job}.0") if one["rank"] == 1]
    os.kill(victim["process"], signal.SIGKILL)
    ended = site.cluster.wait_for(job)
    said = site.output(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), said
    assert f"status: rank 1 on {victim['node']}: ended without a word (killed" in said


def site_python(site: Site) -> str:
    [line] = [
        one for one in (site.work / "site.env").read_text().splitlines() if "PLANT_PYTHON" in one
    ]
    return line.split("=", 1)[1]


def test_a_job_that_its_owner_cancels_does_not_come_back(site: Site) -> None:
    run = site.half_way("cancelled")
    job = site.submit(
        "mimicfull.sh", *TWO_NODES, settings=TRAINING, PLANT_COMMAND="train", PLANT_OUTPUT=str(run)
    )
    wait_for_checkpoint(site, job, run)
    site.cluster.run("scancel", job)
    wait_until(
        lambda: site.cluster.job(job)["JobState"] == "CANCELLED"
        and not site.cluster.run("squeue", "-h", "-j", job).strip(),
        60, lambda: str(site.cluster.job(job)),
    )  # fmt: skip
    assert site.cluster.job(job)["Restarts"] == "0"


def test_a_chain_runs_stage_by_stage(site: Site) -> None:
    run = site.work / "chain"
    printed = subprocess.run(
        [f"{ROOT}/slurm/chain.sh", f"{ROOT}/slurm/eurlex.sh", "--ntasks-per-node=1",
         "--cpus-per-task=1", f"--output={site.work}/%j.out"],
        env={**site.cluster.environment, **site.environment, "PLANT_OUTPUT": str(run),
             "PLANT_STAGE": "1", "PLANT_LOCAL_DISK": str(site.work / "disk")},
        capture_output=True, text=True, check=True, cwd=site.work,
    ).stdout  # fmt: skip
    jobs = dict(line.split() for line in printed.splitlines())
    assert list(jobs) == ["prepare", "mig", "rank", "train", "evaluate"]
    # Nothing starts before what it needs.
    assert site.cluster.job(jobs["evaluate"])["Dependency"].startswith("afterok:" + jobs["train"])
    last = site.cluster.wait_for(jobs["evaluate"], seconds=900)
    assert last["JobState"] == "COMPLETED", site.output(jobs["evaluate"])
    ended = {stage: site.cluster.job(job) for stage, job in jobs.items()}
    assert [one["Partition"] for one in ended.values()] == ["cpu", "cpu", "gpu", "gpu", "gpu"]
    starts = [one["StartTime"] for one in ended.values()]
    assert starts == sorted(starts)
    assert (run / "report" / "report.json").exists()
    # Staged for the stages that read it on every node, and taken away again.
    [log] = (run / "logs").glob(f"slurm-{jobs['train']}.0/rank-0.log")
    assert f"the dataset is copied to {site.work}/disk/plant-{jobs['train']}/dataset-" in (
        log.read_text()
    )
    assert not list((site.work / "disk").glob("plant-*"))


def test_a_chain_whose_stage_fails_ends_there(site: Site) -> None:
    printed = subprocess.run(
        [f"{ROOT}/slurm/chain.sh", f"{ROOT}/slurm/eurlex.sh", f"--output={site.work}/%j.out"],
        env={**site.cluster.environment, **site.environment, "PLANT_OUTPUT": str(site.work / "no"),
             "PLANT_SET": "data.path=nowhere.jsonl", "PLANT_STAGES": "prepare mig"},
        capture_output=True, text=True, check=True, cwd=site.work,
    ).stdout  # fmt: skip
    jobs = dict(line.split() for line in printed.splitlines())
    assert site.cluster.wait_for(jobs["mig"])["JobState"] == "CANCELLED"
    assert site.cluster.job(jobs["prepare"])["JobState"] == "FAILED"


def test_an_array_makes_a_row_of_the_sweep_in_each_task(site: Site) -> None:
    base = site.work / "sweep"
    # Two rows of the ablation, counted from 0, with one seed each.
    job = site.submit(
        "ablation.sh", "--array=2,9", "--cpus-per-task=1", settings=("train.epochs=1",),
        PLANT_OUTPUT=str(base), PLANT_SEEDS="1", PLANT_COMMAND="run",
    )  # fmt: skip
    wait_until(
        lambda: not site.cluster.run("squeue", "-h", "-j", job).strip(), 240,
        lambda: site.cluster.run("squeue"),
    )  # fmt: skip
    found = {path.parents[2].name for path in base.rglob("seed0/report/manifest.json")}
    assert found == {"learned", "static"}, [path.read_text() for path in site.work.glob("*.out")]
    settings = json.loads((base / "ablation/static/seed0/classifier/manifest.json").read_text())
    assert settings["settings"]["model"]["branches"] == ["static"]


def test_a_task_of_an_array_makes_its_run_of_a_sweep(site: Site) -> None:
    base = site.work / "fewshot"
    # Of four runs, those on 12 documents and on all of them with the second seed.
    job = site.submit(
        "codiesp_fewshot.sh", "--array=1,3", "--cpus-per-task=1",
        settings=("train.epochs=1", "sweep.train_documents=[12]", "sweep.seeds=[0,1]"),
        PLANT_OUTPUT=str(base),
    )  # fmt: skip
    wait_until(
        lambda: not site.cluster.run("squeue", "-h", "-j", job).strip(), 240,
        lambda: site.cluster.run("squeue"),
    )  # fmt: skip
    found = {str(path.parents[1].relative_to(base)) for path in base.rglob("report/manifest.json")}
    assert found == {"sweep/config-12/seed1", "sweep/config-all/seed1"}, [
        path.read_text() for path in site.work.glob("*.out")
    ]
    # Whoever ends last has the whole table.
    table = json.loads((base / "sweep/sweep.json").read_text())
    assert [(run["documents"], run["seed"]) for run in table["runs"]] == [(12, 1), (80, 1)]
