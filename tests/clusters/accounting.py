"""Two real Slurms with accounting on this machine: `slurmdbd` on a MariaDB, accounts, QOS limits and preemption.

    python tests/clusters/accounting.py up DIR       prints `export SLURM_CONF=…`
    python tests/clusters/accounting.py status DIR
    python tests/clusters/accounting.py down DIR

Needs the programs of Debian's `slurm-wlm`, `slurmdbd`, `munge` and `mariadb-server-core`, as root. All of it lies in
DIR, as with `slurm.py`: the database, too, which listens on a socket there and on no port.

Clusters: `virtual`, whose commands are the ones that are found, and `second` with a partition `cpu` of one node (s1).
Accounts: `physics` (default) and `chemistry`; a job without a known account is refused. QOS: `normal` (default), `few`
(a user submits one job at a time), `urgent` (it preempts `normal`, whose jobs are ended). Partition `gpu` takes jobs
of `chemistry` alone, `big` those of `operators`, an account that the user is not in.
"""

import getpass
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parent.parent))

from clusters.daemons import free_ports, which
from clusters.slurm import PARTITIONS, VirtualSlurm

ENFORCED = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={dir}/munge/socket
AccountingStorageEnforce=associations,limits,qos
PreemptType=preempt/qos
PreemptMode=CANCEL
PriorityType=priority/multifactor
"""

DBD = """\
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
DebugLevel=info
LogFile={dir}/log/slurmdbd.log
PidFile={dir}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm_acct
"""

#: Enough for `sacctmgr`, before the clusters themselves are there.
BEFORE = """\
ClusterName=virtual
SlurmctldHost=localhost
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
{accounting}
"""

SETUP = (
    "add cluster virtual",
    "add cluster second",
    "add qos few MaxSubmitJobsPerUser=1",
    "add qos urgent Preempt=normal Priority=1000",
    "add account physics",
    "add account chemistry",
    "add account operators",
    "add user {user} account=physics defaultaccount=physics",
    "add user {user} account=chemistry",
    "modify user {user} set qos=normal,few,urgent defaultqos=normal",
)


class _Second(VirtualSlurm):
    """The other cluster, which keeps its accounts in the first one's database."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory)
        self.accounting = ENFORCED.format(port=port, dir=self.dir)

    name = "second"
    nodes: Mapping[str, str] = {"s1": "CPUs=2 RealMemory=4000"}
    partitions = "PartitionName=cpu Nodes=s1 Default=YES MaxTime=01:00:00 DefaultTime=00:10:00 State=UP"


class AccountedSlurm(VirtualSlurm):
    """Both clusters and what they share. It is the first of them, whose commands are found by `SLURM_CONF`."""

    needs = (*VirtualSlurm.needs, "slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
    install = "Debian and Ubuntu: apt install slurm-wlm slurmdbd munge mariadb-server-core"
    partitions = PARTITIONS.replace("Nodes=g1", "Nodes=g1 AllowAccounts=chemistry").replace(
        "Nodes=m[1-2]", "Nodes=m[1-2] AllowAccounts=operators"
    )

    def bring_up(self, timeout_s: float) -> None:
        port = free_ports(1)
        self.accounting = ENFORCED.format(port=port, dir=self.dir)
        second = _Second(self.dir / "second", port)
        self.start_munge()
        (second.dir / "munge").mkdir(mode=0o700, parents=True)
        shutil.copy2(self.dir / "munge/key", second.dir / "munge/key")  # one trusts what the other signed
        self._start_database(port, timeout_s)
        for line in SETUP:
            self.run("sacctmgr", "--immediate", *line.format(user=getpass.getuser()).split())
        super().bring_up(timeout_s)
        second.up(timeout_s)

    def _start_database(self, port: int, timeout_s: float) -> None:
        user, data, socket = getpass.getuser(), self.dir / "mysql", self.dir / "mysql.sock"
        common = ("--no-defaults", f"--datadir={data}", f"--user={user}")
        by_socket = ("--auth-root-authentication-method=socket", f"--auth-root-socket-user={user}")
        self.run("mariadb-install-db", *common, "--skip-test-db", *by_socket, timeout_s=200)
        pid_file = f"--pid-file={self.dir}/mysql.pid"
        self.start("mariadbd", "mariadbd", *common, f"--socket={socket}", "--skip-networking", pid_file)
        self.wait(socket.exists, timeout_s, "mariadbd made no socket")
        conf = self.dir / "slurmdbd.conf"  # where slurmdbd looks for it: beside slurm.conf
        conf.write_text(DBD.format(dir=self.dir, port=port, user=user))
        conf.chmod(0o600)
        self.conf.write_text(BEFORE.format(dir=self.dir, accounting=self.accounting, user=user))
        self.start("slurmdbd", "env", f"MYSQL_UNIX_PORT={socket}", which("slurmdbd") or "slurmdbd", "-D")
        self.wait(
            lambda: "normal" in self.run("sacctmgr", "--noheader", "show", "qos", check=False),
            timeout_s,
            "slurmdbd does not answer",
        )

    def down(self) -> None:
        _Second(self.dir / "second", 0).down()
        super().down()
        self.end_all("slurmdbd", "mariadbd")


if __name__ == "__main__":
    AccountedSlurm.main(__doc__ or "")
