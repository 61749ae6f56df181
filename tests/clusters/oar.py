"""A real OAR with one node on this machine, for tests: from pytest, or from a shell.

    python tests/clusters/oar.py up DIR       prints `export PATH=…` and its like
    python tests/clusters/oar.py status DIR
    python tests/clusters/oar.py down DIR

Needs the programs of Debian's `oar-server`, `oar-user`, their `-pgsql` packages and `postgresql`, and root. (With
MariaDB, OAR 2.6.1 forgets what a job asked for: it locks too few of its tables.)
Everything lies in DIR, the database too; nothing of an installed OAR is read or written. Its server and its database
listen on ports of their own on loopback.

What differs from a site: the commands in DIR/bin take the place of OAR's small setuid programs, which know no other
configuration than /etc/oar; root may submit; and what the server runs on its node through ssh, it runs here at once.
The node has four cores, each a resource with the properties `cpu`, `core` and `mem_core` (MiB).
"""

import contextlib
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parent.parent))

from clusters.daemons import Daemons, free_ports, processes, send

_PROGRAMS = Path("/usr/lib/oar")
_NODE = "node1"
_CORES = 4
_SERVER = "almighty"
_DATABASE = "postgres"
_AS_OAR = ("setpriv", "--reuid=oar", "--regid=oar", "--init-groups")

CONF = """\
DB_TYPE="Pg"
DB_HOSTNAME="127.0.0.1"
DB_PORT="{database_port}"
DB_BASE_NAME="oar"
DB_BASE_LOGIN="oar"
DB_BASE_PASSWD="{password}"
DB_BASE_LOGIN_RO="oar"
DB_BASE_PASSWD_RO="{password}"
SERVER_HOSTNAME="127.0.0.1"
SERVER_PORT="{port}"
OARSUB_DEFAULT_RESOURCES="/resource_id=1"
OARSUB_NODES_RESOURCES="network_address"
OARSUB_FORCE_JOB_KEY="no"
LOG_LEVEL="2"
LOG_CATEGORIES="all"
LOG_FILE="{dir}/log/oar.log"
OAR_RUNTIME_DIRECTORY="{dir}/run"
DEPLOY_HOSTNAME="127.0.0.1"
COSYSTEM_HOSTNAME="127.0.0.1"
DETACH_JOB_FROM_SERVER="1"
OPENSSH_CMD="{dir}/bin/at-node"
OAR_SSH_CONNECTION_TIMEOUT="10"
JOBDEL_WALLTIME="10"
FINAUD_FREQUENCY="0"
PINGCHECKER_GENERIC_COMMAND="{dir}/bin/check-nodes"
SCHEDULER_TIMEOUT="30"
SCHEDULER_NB_PROCESSES=1
SCHEDULER_JOB_SECURITY_TIME="1"
SCHEDULER_GANTT_HOLE_MINIMUM_TIME="1"
SCHEDULER_MIN_TIME_BETWEEN_2_CALLS="1"
SCHEDULER_RESOURCE_ORDER="scheduler_priority ASC, state_num ASC, network_address ASC, resource_id ASC"
SCHEDULER_RESOURCE_ORDER_ADV_RESERVATIONS="network_address ASC, resource_id ASC"
ENERGY_SAVING_INTERNAL="no"
"""

#: What OAR's setuid programs do: a command as the user `oar`, which knows for whom, and with which configuration.
COMMAND = """\
#!/bin/sh
export OARDO_USER=root OARDO_UID=0 OARUSER=oar OARDIR={programs} OARCONFFILE={dir}/oar.conf
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:{programs}/oardodo LOGNAME=oar USER=oar HOME=/var/lib/oar SHELL=/bin/bash
exec setpriv --reuid=oar --regid=oar --init-groups {programs}/{name} "$@"
"""

#: Takes the place of ssh: `at-node OPTIONS NODE COMMAND…`, as `oar`. A node is gone while the file DIR/gone exists.
AT_NODE = """\
#!/bin/sh
[ ! -e {dir}/gone ] || exit 255
while [ "${{1#-}}" != "$1" ]; do shift; done
shift
exec env -i OAR_KEY=1 HOME=/var/lib/oar USER=oar LOGNAME=oar SHELL=/bin/bash OARDIR={programs} {mark} \\
    PATH={programs}/oardodo:/usr/local/bin:/usr/bin:/bin sh -c "$*"
"""

#: Says on standard error which of the nodes in its arguments do not answer.
CHECK_NODES = """\
#!/bin/sh
[ ! -e {dir}/gone ] || for node; do echo "$node" >&2; done
"""


class Oar(Daemons):
    """The cluster that lies in ``directory``. Its commands are found by `PATH`."""

    needs = ("/usr/lib/oar/Almighty", "/usr/lib/oar/oarsub", "pg_ctlcluster", "psql")
    install = "Debian: apt install oar-server oar-server-pgsql oar-user oar-user-pgsql postgresql"

    def __init__(self, directory: str | Path) -> None:
        super().__init__(directory, ("OAR_TEST_CLUSTER", os.fspath(Path(directory).resolve())))

    @property
    def variables(self) -> dict[str, str]:
        return super().variables | {"PATH": f"{self.dir}/bin:{os.environ['PATH']}"}

    def queue(self) -> list[str]:
        return [line for line in self.run("oarstat").splitlines() if line[:1].isdigit()]

    def status(self) -> str:
        return self.run("oarnodes", "-s", check=False) + "\n" + self.run("oarstat", check=False)

    def lose_node(self) -> None:
        """From now on the node does not answer."""
        (self.dir / "gone").touch()

    def mend_node(self) -> None:
        (self.dir / "gone").unlink(missing_ok=True)
        self.run("oarnodesetting", "-h", _NODE, "-s", "Alive")

    def bring_up(self, timeout_s: float) -> None:
        self.dir.chmod(0o711)  # commands run as `oar`
        for name in ("bin", "log", "run", "pids"):
            (self.dir / name).mkdir(exist_ok=True)
        for name in ("log", "run"):
            shutil.chown(self.dir / name, "oar", "oar")
        port, database_port = (free := free_ports(2)), free + 1
        password = secrets.token_hex(16)
        conf = self.dir / "oar.conf"
        conf.write_text(CONF.format(dir=self.dir, port=port, database_port=database_port, password=password))
        shutil.chown(conf, "oar", "oar")
        conf.chmod(0o600)
        self._write_commands()
        self._start_database(database_port, password, timeout_s)
        self.start_server()
        for name in ("cpu", "core", "mem_core"):
            self.run("oarproperty", "-a", name)
        for core in range(1, _CORES + 1):
            properties = ("cpu=1", f"core={core}", f"cpuset={core - 1}", "mem_core=1000")
            self.run("oarnodesetting", "-a", "-h", _NODE, *(word for text in properties for word in ("-p", text)))
        self.wait(lambda: self.run("oarnodes", "-s", check=False).count("Alive") > 0, timeout_s, "no node came up")

    def end_server(self) -> None:
        server = self.pid(_SERVER)
        self.end(_SERVER, signal.SIGTERM)
        _end_session(server)

    def start_server(self) -> None:
        # OAR lets each shell of a job read the user's profile, which is no concern of the tests, and where that starts
        # other shells, never ends: in the mounts that its server and jobs see, what tells them to is empty.
        quiet = f"mount --bind /dev/null /var/lib/oar/.batch_job_bashrc && exec {self.dir}/bin/Almighty"
        self.start(_SERVER, "unshare", "--mount", "--propagation", "private", "sh", "-c", quiet)

    def down(self) -> None:
        server = self.pid(_SERVER)
        if server is not None:
            with contextlib.suppress(RuntimeError):  # the database may be gone
                ids = [line.split()[0] for line in self.queue()]
                if ids:
                    self.run("oardel", *ids, check=False)
                self.drain()
        self.end_all(_SERVER)
        _end_session(server)
        self.end(_DATABASE, signal.SIGINT)  # with SIGTERM it would wait for the server's helpers

    def _write_commands(self) -> None:
        texts = {
            name: COMMAND.format(dir=self.dir, programs=_PROGRAMS, name=name)
            for name in ("Almighty", "oarsub", "oardel", "oarstat", "oarnodes", "oarhold", "oarresume",
                         "oarnodesetting", "oarproperty")
        }  # fmt: skip
        texts |= {
            "at-node": AT_NODE.format(dir=self.dir, programs=_PROGRAMS, mark="=".join(self.mark)),
            "check-nodes": CHECK_NODES.format(dir=self.dir),
        }
        for name, text in texts.items():
            path = self.dir / "bin" / name
            path.write_text(text)
            path.chmod(0o755)

    def _start_database(self, port: int, password: str, timeout_s: float) -> None:
        programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        data, sockets, secret = self.dir / "database", self.dir / "run", self.dir / "run/password"
        data.mkdir(mode=0o700)
        secret.write_text(password)
        for path in (data, secret):
            shutil.chown(path, "oar", "oar")
        secret.chmod(0o600)
        # It refuses to run as root.
        access = ("--username=oar", f"--pwfile={secret}", "--auth-local=peer", "--auth-host=scram-sha-256")
        kind = ("--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        self.run(*_AS_OAR, f"{programs}/initdb", f"--pgdata={data}", *access, *kind, timeout_s=200)
        settings = (f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={sockets}", "fsync=off")
        options = (word for setting in settings for word in ("-c", setting))
        self.start(_DATABASE, *_AS_OAR, f"{programs}/postgres", "-D", os.fspath(data), *options)
        psql = (*_AS_OAR, "psql", f"--host={sockets}", f"--port={port}", "--username=oar", "--no-psqlrc", "--quiet")
        self.wait(
            lambda: self.run(*psql, "--command=SELECT 1", "postgres", check=False) != "",
            timeout_s,
            "the database does not answer",
        )
        self.run(*psql, "--command=CREATE DATABASE oar", "postgres")
        sql = ""
        for name in ("pg_structure", "default_data", "pg_default_admission_rules"):
            sql += (_PROGRAMS / f"database/{name}.sql").read_text()
        sql += "DELETE FROM admission_rules WHERE rule LIKE '%root and oar users are not allowed%';"
        self.run(*psql, "--set=ON_ERROR_STOP=1", "oar", text=sql)


def _end_session(server: int | None) -> None:
    """End the server's helpers, which ignore its end, and what is left of jobs: all are of its session.

    Perl writes their names over the variables by which they could be known.
    """
    for pid in processes():
        with contextlib.suppress(ProcessLookupError):
            if server is not None and os.getsid(pid) == server:
                send(pid, signal.SIGKILL)


if __name__ == "__main__":
    Oar.main(__doc__ or "")
