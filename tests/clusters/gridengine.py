"""A real Grid Engine with one execution host on this machine, for tests: from pytest, or from a shell.

    python tests/clusters/gridengine.py up DIR       prints `export SGE_ROOT=…` and its like
    python tests/clusters/gridengine.py status DIR
    python tests/clusters/gridengine.py down DIR

Needs the programs of Debian's `gridengine-master`, `gridengine-exec` and `gridengine-client`, and root. Everything lies
in DIR: nothing of an installed cell is read or written. Queue `all.q` has four slots and the environment `smp`.
"""

import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parent.parent))

from clusters.daemons import Daemons, free_ports

_PROGRAMS = Path("/usr/lib/gridengine")
_SHARED = Path("/usr/share/gridengine")
_INSTALLED = Path("/var/lib/gridengine")

PARALLEL = """\
pe_name smp
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""
QUEUE = """\
qname all.q
hostlist {host}
seq_no 0
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH INTERACTIVE
ckpt_list NONE
pe_list smp
rerun FALSE
slots 4
tmpdir /tmp
shell /bin/csh
prolog NONE
epilog NONE
shell_start_mode posix_compliant
starter_method NONE
suspend_method NONE
resume_method NONE
terminate_method NONE
notify 00:00:60
owner_list NONE
user_lists NONE
xuser_lists NONE
subordinate_list NONE
complex_values NONE
projects NONE
xprojects NONE
calendar NONE
initial_state default
s_rt INFINITY
h_rt INFINITY
s_cpu INFINITY
h_cpu INFINITY
s_fsize INFINITY
h_fsize INFINITY
s_data INFINITY
h_data INFINITY
s_stack INFINITY
h_stack INFINITY
s_core INFINITY
h_core INFINITY
s_rss INFINITY
h_rss INFINITY
s_vmem INFINITY
h_vmem INFINITY
"""


class GridEngine(Daemons):
    """The cluster that lies in ``directory``."""

    needs = ("sge_qmaster", "sge_execd", "qsub")
    install = "Debian: apt install gridengine-master gridengine-exec gridengine-client"

    def __init__(self, directory: str | Path) -> None:
        self.root = Path(directory).resolve() / "root"
        super().__init__(directory, ("SGE_ROOT", os.fspath(self.root)))

    @property
    def variables(self) -> dict[str, str]:
        port = int((self.dir / "port").read_text())
        return super().variables | {
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(port),
            "SGE_EXECD_PORT": str(port + 1),
        }

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"SGE_ND": "1"}  # daemons stay in the foreground

    def queue(self) -> list[str]:
        return self.run("qstat").splitlines()[2:]

    def status(self) -> str:
        return self.run("qstat", "-f", check=False)

    def bring_up(self, timeout_s: float) -> None:
        self._lay_out()
        for command in (
            ("spoolinit", "classic", "libspoolc", f"{self.root}/default/common;{self.dir}/spooldb", "init"),
            ("spooldefaults", "configuration", f"{self.dir}/configuration"),
            ("spooldefaults", "complexes", f"{_SHARED}/util/resources/centry"),
            ("spooldefaults", "usersets", f"{_SHARED}/util/resources/usersets"),
            ("spooldefaults", "managers", "root"),
        ):
            self.run(f"{_PROGRAMS}/{command[0]}", *command[1:])
        self.start("qmaster", f"{_PROGRAMS}/sge_qmaster")
        self.wait(lambda: "algorithm" in self.run("qconf", "-ssconf", check=False), timeout_s, "the master answers")
        host = platform.node()
        self.run("qconf", "-ah", host, check=False)
        self.run("qconf", "-as", host)
        self.start("execd", f"{_PROGRAMS}/sge_execd")
        schedule = self.run("qconf", "-ssconf").splitlines()
        quick = {"schedule_interval": "0:0:2", "flush_submit_sec": "1", "flush_finish_sec": "1"}
        lines = [f"{line.split()[0]} {quick.get(line.split()[0], line.split(None, 1)[1])}" for line in schedule]
        for option, text in (("-Ap", PARALLEL), ("-Aq", QUEUE.format(host=host)), ("-Msconf", "\n".join(lines) + "\n")):
            path = self.dir / f"setting{option}"
            path.write_text(text)
            self.run("qconf", option, os.fspath(path))
        self.wait(self._ready, timeout_s, "the execution host did not come up")

    def down(self) -> None:
        if self.pid("qmaster") is not None:
            self.run("qdel", "-u", "*", check=False)
            self.drain()
        self.end_all("execd", "qmaster")

    def _ready(self) -> bool:
        states = [
            words for row in self.status().splitlines() if (words := row.split()) and words[0].startswith("all.q@")
        ]
        return bool(states) and len(states[0]) < 6 and states[0][3] not in ("-NA-", "NA")

    def _lay_out(self) -> None:
        for name in ("root/default/common", "qmaster/job_scripts", "execd", "spooldb", "log", "pids"):
            (self.dir / name).mkdir(parents=True, exist_ok=True)
        (self.dir / "port").write_text(str(free_ports(2)))
        common = self.root / "default/common"
        for name in ("bin", "util", "utilbin", "lib"):
            (self.root / name).symlink_to(_INSTALLED / name)
        host = platform.node()
        (common / "act_qmaster").write_text(f"{host}\n")
        (common / "cluster_name").write_text("virtual\n")
        # Where 127.0.0.1 has several names, the first in /etc/hosts would count as another host.
        (common / "host_aliases").write_text(f"{host} localhost\n")
        changed = {
            "admin_user": "none",
            "spooling_method": "classic",
            "spooling_lib": "libspoolc",
            "spooling_params": f"{common};{self.dir}/spooldb",
            "qmaster_spool_dir": f"{self.dir}/qmaster",
        }
        _copy_changed(_SHARED / "default-bootstrap", common / "bootstrap", changed)
        changed = {
            "execd_spool_dir": f"{self.dir}/execd",
            "min_uid": "0",
            "min_gid": "0",
            "load_report_time": "00:00:02",
            "execd_params": "ENABLE_ADDGRP_KILL=true",
            "login_shells": "none",  # what a user's profile does, and waits for, is no concern of the tests
        }
        _copy_changed(_SHARED / "default-configuration", self.dir / "configuration", changed)


def _copy_changed(source: Path, target: Path, changed: dict[str, str]) -> None:
    lines = []
    for line in source.read_text().splitlines():
        name = line.split()[0] if line.split() else ""
        lines.append(f"{name} {changed[name]}" if name in changed else line)
    target.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    GridEngine.main(__doc__ or "")
