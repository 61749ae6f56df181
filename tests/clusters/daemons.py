"""Daemons of a test cluster, in a directory of its own: started, found again and ended by their process ids."""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Daemons:
    """What both real batch systems share. Everything lies in ``dir``; `down` leaves it to be read or removed."""

    needs: tuple[str, ...]  # programs
    install: str  # how they are had

    def __init__(self, directory: str | Path, mark: tuple[str, str]) -> None:
        """``mark``: a variable with its value that each daemon, and what it starts, has."""
        self.dir = Path(directory).resolve()
        self.mark = mark

    @property
    def variables(self) -> dict[str, str]:
        """By which commands find the cluster."""
        return dict([self.mark])

    @property
    def environment(self) -> dict[str, str]:
        """What the batch system's commands need."""
        return os.environ | self.variables

    def queue(self) -> list[str]:
        """A line for each job that waits or runs."""
        raise NotImplementedError

    def status(self) -> str:
        """Nodes and jobs, for people."""
        raise NotImplementedError

    def bring_up(self, timeout_s: float) -> None:
        """Write the configuration, start the daemons, and wait until they take jobs."""
        raise NotImplementedError

    def down(self) -> None:
        """End the jobs, then the daemons, by process id."""
        raise NotImplementedError

    def up(self, timeout_s: float = 90) -> None:
        """Start everything, and wait until it takes jobs; RuntimeError with the daemons' logs. Nothing is left then."""
        missing = [program for program in self.needs if which(program) is None]
        if missing:
            msg = f"{', '.join(missing)} is not installed; {self.install}"
            raise RuntimeError(msg)
        try:
            self.bring_up(timeout_s)
        except BaseException:
            self.down()
            raise

    def drain(self) -> None:
        """Wait for the end of jobs that were cancelled."""
        with contextlib.suppress(RuntimeError):
            self.wait(lambda: not self.queue(), 20, "the queue is not empty")

    @classmethod
    def main(cls, documentation: str) -> None:
        """The command line: `up`, `status` or `down`, and the directory."""
        parser = argparse.ArgumentParser(description=documentation.split("\n", maxsplit=1)[0])
        parser.add_argument("action", choices=("up", "down", "status"))
        parser.add_argument("directory")
        arguments = parser.parse_args()
        cluster = cls(arguments.directory)
        if arguments.action == "up":
            cluster.up()
            for name, value in cluster.variables.items():
                print(f"export {name}={value}")
        elif arguments.action == "status":
            print(cluster.status())
        else:
            cluster.down()

    def run(self, *command: str, check: bool = True, timeout_s: float = 60, text: str | None = None) -> str:
        """The standard output of a command run against this cluster."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False, input=text
        )
        if check and done.returncode:
            msg = f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}"
            raise RuntimeError(msg)
        return done.stdout.strip()

    def start(self, name: str, *command: str) -> None:
        for part in ("log", "pids"):
            (self.dir / part).mkdir(exist_ok=True)
        program = which(command[0])
        assert program is not None, f"{command[0]} is not installed"
        with open(self.dir / f"log/{name}.out", "ab") as out:
            process = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                env=self.environment,
                start_new_session=True,
            )
        (self.dir / f"pids/{name}").write_text(str(process.pid))

    def pid(self, name: str) -> int | None:
        """Of a daemon that lives."""
        try:
            pid = int((self.dir / f"pids/{name}").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if self.belongs(pid) else None

    def belongs(self, pid: int) -> bool:
        """Whether the process was started for this cluster: ids are used again. Not who asks, whatever it has."""
        return pid != os.getpid() and f"{self.mark[0]}={self.mark[1]}".encode() in environ(pid)

    def end(self, name: str, number: signal.Signals) -> None:
        pid = self.pid(name)
        if pid is not None:
            send(pid, number)
            deadline = time.monotonic() + 15
            while self.pid(name) is not None:
                if time.monotonic() > deadline:
                    send(pid, signal.SIGKILL)
                    deadline += 15
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                time.sleep(0.05)
        (self.dir / f"pids/{name}").unlink(missing_ok=True)

    def end_all(self, *names: str) -> None:
        """All at once, since each takes its time."""
        for name in names:
            if (pid := self.pid(name)) is not None:
                send(pid, signal.SIGTERM)
        for name in names:
            self.end(name, signal.SIGTERM)

    def wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                msg = f"{what} within {timeout_s:.0f} s\n{self.logs()}"
                raise RuntimeError(msg)
            time.sleep(0.25)

    def logs(self) -> str:
        parts = []
        for path in sorted((self.dir / "log").glob("*")):
            text = path.read_text(errors="replace")
            if text:
                parts.append(f"== {path.name}\n{text[-2000:]}")
        return "\n".join(parts)


def which(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")


def free_ports(number: int) -> int:
    """The first of so many neighbouring ports that nobody listens on, below the range of outgoing connections."""
    for _ in range(200):
        base = 10000 + secrets.randbelow(20000)
        if all(_is_free(base + offset) for offset in range(number)):
            return base
    msg = f"found no {number} neighbouring free ports"
    raise RuntimeError(msg)


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def brought_up(kind: type[Any]) -> Iterator[Any]:
    """A cluster of this kind for all tests of a fixture, in a short path, since its sockets lie there; then removed."""
    directory = Path(tempfile.mkdtemp(prefix="cluster-", dir="/tmp"))
    cluster = kind(directory)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(directory, ignore_errors=True)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def environ(pid: int) -> list[bytes]:
    return _read(pid, "environ").split(b"\0")


def cmdline(pid: int) -> bytes:
    return _read(pid, "cmdline")


def comm(pid: int) -> str:
    return _read(pid, "comm").decode(errors="replace").strip()


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
