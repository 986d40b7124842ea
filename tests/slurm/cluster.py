"""A real SLURM of three nodes on one machine, for tests: no systemd, no cgroups, no accounting.

Every node is a slurmd in a network and a host name of its own, so that ranks meet over TCP as on
real nodes. Where network namespaces are not permitted, the nodes share the machine's network. The
nodes claim cores, memory and GPUs that are not there, so that every resource line of `slurm/` can
be checked; nothing measures what is used.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "ip", "nsenter")
NODES = ("n1", "n2", "n3")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

CONF = """\
ClusterName=tests
SlurmctldHost={host}({controller})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits as long as a credential lives: seconds here, two minutes by default.
AuthInfo=socket={base}/run/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
# How soon a dead node is noticed.
SlurmctldTimeout=5
SlurmdTimeout=5
KillWait=5
InactiveLimit=0
MinJobAge=3600
{nodes}
PartitionName=gpu Nodes=n[1-3] Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=cpu Nodes=n[1-3] PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=urgent Nodes=n[1-3] PriorityTier=10 PreemptMode=OFF State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=256 "
    "RealMemory=2000000 Gres=gpu:8 State=UNKNOWN"
)


def reason_to_skip() -> str | None:
    """Why no cluster can be started here; None where one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)} missing); see .ci/run"
    if os.geteuid() != 0:
        return "starting slurmd for others needs root"
    return None


def search_path() -> str:
    """PATH with the folders where Debian puts daemons."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class Cluster:
    """The daemons, from `start` to `stop`, and the commands that speak to them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        # Free now is as good as it gets; sessions side by side need ports of their own.
        self.ports = free_ports(4)
        self.tag = f"pd{os.getpid() % 100000}"
        self.subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.networks = False

    @property
    def environment(self) -> dict[str, str]:
        """What commands need to find this cluster and no other."""
        inherited = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "PLANT_"))
        }  # fmt: skip
        return {**inherited, "SLURM_CONF": f"{self.base}/slurm.conf", "PATH": search_path()}

    def start(self) -> None:
        """Start everything, and wait until the nodes are there."""
        for name in ("state", "log", "run", "munge", *(f"spool/{node}" for node in NODES)):
            (self.base / name).mkdir(parents=True)
        # munged minds who may read its folders.
        (self.base / "munge").chmod(0o700)
        (self.base / "run").chmod(0o755)
        self.networks = self._make_networks()
        self._write_conf()
        self._start_munge()
        self.run("slurmctld", "-c", "-f", f"{self.base}/slurm.conf")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.idle_nodes() == len(NODES), 60, "the nodes are not up")

    def _write_conf(self) -> None:
        host = socket.gethostname().split(".")[0]
        controller = f"{self.subnet}.254" if self.networks else "127.0.0.1"
        nodes = [
            NODE.format(
                name=node,
                host=node if self.networks else host,
                address=f"{self.subnet}.{place}" if self.networks else "127.0.0.1",
                port=self.ports[place],
            )
            for place, node in enumerate(NODES, start=1)
        ]
        (self.base / "slurm.conf").write_text(
            CONF.format(
                host=host, controller=controller, port=self.ports[0], base=self.base,
                nodes="\n".join(nodes),
            )
        )  # fmt: skip
        # Without it slurmd 22.05 dies where /sys/fs/cgroup is not mounted.
        (self.base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for number in range(8):
            (self.base / f"gpu{number}").touch()
        gpus = f"NodeName=n[1-3] Name=gpu File={self.base}/gpu[0-7]\n"
        (self.base / "gres.conf").write_text(gpus)
        hosts = [Path("/etc/hosts").read_text()]
        hosts += [f"{self.subnet}.{place} {node}\n" for place, node in enumerate(NODES, start=1)]
        (self.base / "hosts").write_text("".join(hosts))

    def _start_munge(self) -> None:
        key = self.base / "munge" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        munge, run = self.base / "munge", self.base / "run"
        self.run(
            "munged", "--force", f"--key-file={key}", f"--socket={run}/munge.socket",
            f"--pid-file={run}/munged.pid", f"--log-file={munge}/munged.log",
            f"--seed-file={munge}/munged.seed",
        )  # fmt: skip

    def host(self, node: str) -> str:
        """The name that processes on a node take it for."""
        return node if self.networks else socket.gethostname()

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, in its own network and with its own host name."""
        daemon = ["slurmd", "-f", f"{self.base}/slurm.conf", "-N", node]
        if not self.networks:
            self.run(*daemon)
            return
        # Its own view of /etc/hosts, too: the machine's stays as it is.
        setup = f'mount --bind {self.base}/hosts /etc/hosts && hostname {node} && exec "$@"'
        self.run(
            "nsenter", f"--net=/run/netns/{self.tag}{node}", "unshare", "--uts", "--mount",
            "bash", "-c", setup, "bash", *daemon,
        )  # fmt: skip

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd, by its own pid, as if the machine had gone."""
        os.kill(int((self.base / "run" / f"{node}.pid").read_text()), signal.SIGKILL)

    def stop(self) -> None:
        """End every job and daemon of this cluster, by their pids, and remove the networks."""
        self.run("scancel", "--user=root", check=False)
        wait_until(lambda: not self.run("squeue", "-h").strip(), 60, "jobs will not end")
        for path in sorted((self.base / "run").glob("*.pid"), reverse=True):
            # A node that a test has killed has no process any more.
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)
        for node in NODES if self.networks else ():
            self.run("ip", "netns", "del", f"{self.tag}{node}", check=False)
        if self.networks:
            self.run("ip", "link", "del", f"{self.tag}br", check=False)

    def _make_networks(self) -> bool:
        bridge = f"{self.tag}br"
        commands = [
            f"link add {bridge} type bridge",
            f"addr add {self.subnet}.254/24 dev {bridge}",
            f"link set {bridge} up",
        ]
        for place, node in enumerate(NODES, start=1):
            space, wire = f"{self.tag}{node}", f"{self.tag}v{place}"
            commands += [
                f"netns add {space}",
                f"link add {wire} type veth peer name eth0 netns {space}",
                f"link set {wire} master {bridge} up",
                f"-n {space} addr add {self.subnet}.{place}/24 dev eth0",
                f"-n {space} link set eth0 up",
                f"-n {space} link set lo up",
            ]
        try:
            for command in commands:
                self.run("ip", *command.split())
        except AssertionError:
            # Not permitted, as in an unprivileged container.
            self.run("ip", "link", "del", bridge, check=False)
            return False
        return True

    def run(self, *words: str, check: bool = True, **more: str) -> str:
        """Run a command against this cluster and return its output."""
        ran = subprocess.run(
            words, env={**self.environment, **more}, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert not check or ran.returncode == 0, f"{words}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def idle_nodes(self) -> int:
        """The number of nodes that wait for work."""
        return len(self.run("sinfo", "-h", "-N", "-p", "gpu", "-t", "idle", "-o", "%N").split())

    def job(self, job: str) -> dict[str, str]:
        """What the controller knows of a job."""
        words = self.run("scontrol", "-o", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, seconds: float = 240) -> dict[str, str]:
        """Wait until a job has ended, and return what is known of it."""
        wait_until(
            lambda: self.job(job)["JobState"] in ENDED, seconds,
            lambda: f"job {job} is still {self.job(job)}",
        )  # fmt: skip
        return self.job(job)


def wait_until(
    done: Callable[[], bool], seconds: float, complaint: str | Callable[[], str]
) -> None:
    """Look again and again until something holds."""
    deadline = time.monotonic() + seconds
    while not done():
        told = complaint if isinstance(complaint, str) else ""
        assert time.monotonic() < deadline, told or complaint()  # type: ignore[operator]
        time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
