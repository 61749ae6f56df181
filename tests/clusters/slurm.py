"""A real Slurm of small virtual nodes on this machine, for tests: from pytest, or from a shell.

    python tests/clusters/slurm.py up DIR       prints `export SLURM_CONF=…`
    python tests/clusters/slurm.py status DIR
    python tests/clusters/slurm.py down DIR

Needs the programs of Debian's `slurm-wlm` and `munge`, as root or as an ordinary user. Everything lies in DIR:
configuration, keys, sockets, logs, and the daemons' process ids, by which they are ended. Nothing in /etc or /run is
read or written.

Partitions: `cpu` (default: c1-c3 with 2 CPUs and 4000 MB, at most an hour), `big` (m1-m2 with 4 CPUs, 8000 MB, feature
`bigmem`, at most two hours), `gpu` (g1 with 4 CPUs, 8000 MB and four `a100`, which are other devices in truth).
"""

import getpass
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parent.parent))

from clusters.daemons import Daemons, cmdline, comm, environ, free_ports, processes, send

NODES = {
    **{f"c{i}": "CPUs=2 RealMemory=4000" for i in (1, 2, 3)},
    **{f"m{i}": "CPUs=4 RealMemory=8000 Feature=bigmem" for i in (1, 2)},
    "g1": "CPUs=4 RealMemory=8000 Gres=gpu:a100:4",
}

CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
CredType=cred/munge
CryptoType=crypto/munge
SlurmctldPort={port}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1,sched_min_interval=1
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=15
SlurmdTimeout=15
SlurmctldTimeout=30
BatchStartTimeout=30
MessageTimeout=20
WaitTime=0
JobRequeue=1
GresTypes=gpu
{accounting}
{nodes}
{partitions}
"""

PARTITIONS = """\
PartitionName=cpu Nodes=c[1-3] Default=YES MaxTime=01:00:00 DefaultTime=00:10:00 DefMemPerCPU=1000 State=UP
PartitionName=big Nodes=m[1-2] MaxTime=02:00:00 DefaultTime=00:10:00 DefMemPerCPU=1000 State=UP
PartitionName=gpu Nodes=g1 MaxTime=02:00:00 DefaultTime=00:10:00 DefMemPerCPU=1000 State=UP
"""


def one_pool(workers: str, more: str = "", partition: str = "cpu", walltime: str = "10m", cores: int = 1) -> str:
    """A pools file with one pool of `VirtualSlurm`; ``more``: further lines of the pool."""
    return f"""
pools:
  main:
    cluster: slurm
    workers: {workers}
    cores: {cores}
    memory: 900 MB
    walltime: {walltime}
    options: {{queue: {partition}}}
    {more}
"""


class VirtualSlurm(Daemons):
    """The cluster that lies in ``directory``. Commands of Slurm find it through `SLURM_CONF`."""

    needs = ("munged", "slurmctld", "slurmd", "sbatch")
    install = "Debian and Ubuntu: apt install slurm-wlm munge"
    name = "virtual"
    nodes: Mapping[str, str] = NODES
    partitions = PARTITIONS
    accounting = "AccountingStorageType=accounting_storage/none"

    def __init__(self, directory: str | Path) -> None:
        self.conf = Path(directory).resolve() / "slurm.conf"
        super().__init__(directory, ("SLURM_CONF", os.fspath(self.conf)))

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, with the cluster's configuration, and without another Slurm's variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return kept | self.variables

    def queue(self) -> list[str]:
        """The jobs that wait or run, as `id name state nodes` (those that are ending count)."""
        return self.run("squeue", "--noheader", "--format=%A %j %T %N").splitlines()

    def status(self) -> str:
        return self.run("sinfo", "--Node", "--long", check=False) + "\n" + self.run("squeue", check=False)

    # Up and down

    def bring_up(self, timeout_s: float) -> None:
        for name in ("munge", "state", "spool", "log", "pids", "dev", *(f"spool/{node}" for node in self.nodes)):
            (self.dir / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_configuration()
        self.start_munge()
        self.start("slurmctld", "slurmctld", "-D", "-c", "-f", str(self.conf))
        for node in self.nodes:
            self.start_node(node)
        self.wait(self.all_idle, timeout_s, "the nodes did not become idle")

    def start_munge(self) -> None:
        """By which daemons and commands know each other, with a key of this cluster's own."""
        if self.pid("munged") is not None:
            return
        directory = self.dir / "munge"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.dir / "log").mkdir(mode=0o700, exist_ok=True)
        if not (directory / "key").exists():
            with os.fdopen(os.open(directory / "key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(1024))
        self.start("munged", "munged", "--foreground", "--force", f"--socket={self.dir}/munge/socket",
                    f"--key-file={self.dir}/munge/key", f"--pid-file={self.dir}/munge/pid",
                    f"--log-file={self.dir}/log/munged.log", f"--seed-file={self.dir}/munge/seed")  # fmt: skip
        self.wait((self.dir / "munge/socket").exists, 30, "munged made no socket")

    def down(self) -> None:
        if self.pid("slurmctld") is not None:
            self.run("scancel", f"--user={getpass.getuser()}", "--full", check=False)
            self.drain()
        self.end_all(*(f"slurmd.{node}" for node in self.nodes), "slurmctld", "munged")
        for pid in processes():
            if comm(pid) == "slurmstepd" and self.belongs(pid):
                send(pid, signal.SIGKILL)

    def start_node(self, node: str) -> None:
        self.start(f"slurmd.{node}", "slurmd", "-D", "-N", node, "-f", str(self.conf))

    def kill_node(self, node: str) -> None:
        """Kill a node's `slurmd`, and what it had started, as a power cut would."""
        self.end(f"slurmd.{node}", signal.SIGKILL)
        for job in self.run("squeue", "--noheader", f"--nodelist={node}", "--format=%A").split():
            wanted = f"SLURM_JOB_ID={job}".encode()
            for pid in filter(self.belongs, processes()):
                if wanted in environ(pid) or (comm(pid) == "slurmstepd" and f"[{job}.".encode() in cmdline(pid)):
                    send(pid, signal.SIGKILL)

    def node_lives(self, node: str) -> bool:
        return self.pid(f"slurmd.{node}") is not None

    # Interior

    def _write_configuration(self) -> None:
        base = free_ports(len(self.nodes) + 1)
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={base + 1 + i} {what} State=UNKNOWN"
            for i, (node, what) in enumerate(self.nodes.items())
        ]
        text = CONF.format(
            host=host, user=getpass.getuser(), dir=self.dir, port=base, nodes="\n".join(lines), name=self.name,
            accounting=self.accounting, partitions=self.partitions,
        )  # fmt: skip
        self.conf.write_text(text)
        for index, device in enumerate(("null", "zero", "full", "random")):  # Slurm insists on devices
            link = self.dir / f"dev/nvidia{index}"
            link.unlink(missing_ok=True)
            link.symlink_to(f"/dev/{device}")
        gpus = [node for node, what in self.nodes.items() if "Gres" in what]
        lines = [f"NodeName={node} Name=gpu Type=a100 File={self.dir}/dev/nvidia[0-3]\n" for node in gpus]
        (self.dir / "gres.conf").write_text("".join(lines))
        # Slurm would look for cgroups in containers that have none.
        (self.dir / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")

    def all_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False).splitlines()
        idle = {line.split()[0] for line in states if line.split()[1] == "idle"}
        return idle == set(self.nodes)


if __name__ == "__main__":
    VirtualSlurm.main(__doc__ or "")
