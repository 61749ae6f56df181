"""A real HTCondor pool of this one machine, for tests: from pytest, or from a shell.

    python tests/clusters/htcondor.py up DIR       prints `export CONDOR_CONFIG=…` and its like
    python tests/clusters/htcondor.py status DIR
    python tests/clusters/htcondor.py down DIR

Needs the programs of Debian's `condor` (13 or newer). Everything lies in DIR; nothing in /etc/condor is read. All
daemons listen on loopback. The pool has one slot of four cores and 4000 MB, which is divided as jobs ask for it, and
refuses jobs of the accounting group `nope`, as sites do.

As root, daemons and commands run as an ordinary user: HTCondor takes no jobs of root's, and its daemons would change
settings of the kernel. In a user namespace root is that user, so that root's files stay the jobs' own.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parent.parent))

from clusters.daemons import Daemons, free_ports, processes, send, which

_USER = "daemon"
_COMMANDS = ("condor_submit", "condor_rm", "condor_q", "condor_status", "condor_history", "condor_master")

CONF = """\
RELEASE_DIR = /usr
LOCAL_DIR = {dir}
BIN = /usr/bin
SBIN = /usr/sbin
LIB = /usr/lib/condor
LIBEXEC = /usr/libexec/condor
SHARE = /usr/share/condor
LOG = {dir}/log
SPOOL = {dir}/spool
EXECUTE = {dir}/execute
LOCK = {dir}/lock
RUN = {dir}/run
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:{port}
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
USE_SHARED_PORT = False
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
ALLOW_ADMINISTRATOR = {user}@*
ALLOW_DAEMON = {user}@*
ALLOW_NEGOTIATOR = {user}@*
ALLOW_WRITE = {user}@*
ALLOW_READ = {user}@*
NUM_CPUS = 4
MEMORY = 4000
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
START = True
SUSPEND = False
PREEMPT = False
KILL = False
CLAIM_WORKLIFE = 0
RUNBENCHMARKS = False
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_MIN_INTERVAL = 1
SCHEDD_INTERVAL = 2
UPDATE_INTERVAL = 2
PERIODIC_EXPR_INTERVAL = 2
MASTER_UPDATE_INTERVAL = 5
SUBMIT_REQUIREMENT_NAMES = Group
SUBMIT_REQUIREMENT_Group = AcctGroup =!= "nope"
SUBMIT_REQUIREMENT_Group_REASON = "there is no accounting group nope here"
"""


class HTCondor(Daemons):
    """The pool that lies in ``directory``. Its commands are found by `PATH`, and find it by `CONDOR_CONFIG`."""

    needs = ("condor_master", "condor_schedd", "condor_startd", "condor_submit", "unshare")
    install = "Debian 13 or newer: apt install condor"

    def __init__(self, directory: str | Path) -> None:
        self.conf = Path(directory).resolve() / "condor_config"
        super().__init__(directory, ("CONDOR_CONFIG", os.fspath(self.conf)))

    @property
    def variables(self) -> dict[str, str]:
        return super().variables | {"PATH": f"{self.dir}/bin:{os.environ['PATH']}"}

    def queue(self) -> list[str]:
        return self.run("condor_q", "-allusers", "-af", "ClusterId", "ProcId", "JobStatus").splitlines()

    def status(self) -> str:
        return self.run("condor_status", check=False) + "\n" + self.run("condor_q", "-allusers", check=False)

    def bring_up(self, timeout_s: float) -> None:
        for name in ("bin", "log", "spool", "execute", "lock", "run", "pids"):
            (self.dir / name).mkdir(mode=0o755, exist_ok=True)
        prefix, user = "", "$(USERNAME)"
        if os.getuid() == 0:
            prefix, user = f"unshare --user --map-user={_USER} --map-group={_USER} -- ", _USER
        self.conf.write_text(CONF.format(dir=self.dir, port=free_ports(1), user=user))
        for name in _COMMANDS:
            path = self.dir / "bin" / name
            path.write_text(f'#!/bin/sh\nexec {prefix}{which(name)} "$@"\n')
            path.chmod(0o755)
        self.start("master", f"{self.dir}/bin/condor_master", "-f")
        self.wait(lambda: bool(self.run("condor_status", "-af", "Name", check=False)), timeout_s, "no slot came up")
        self.wait(
            lambda: "Total for query" in self.run("condor_q", check=False), timeout_s, "the queue does not answer"
        )

    def down(self) -> None:
        if self.pid("master") is not None:
            self.run("condor_rm", "-all", check=False)
            self.drain()
        self.end_all("master")
        for pid in filter(self.belongs, processes()):
            send(pid, signal.SIGKILL)


if __name__ == "__main__":
    HTCondor.main(__doc__ or "")
