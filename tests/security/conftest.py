"""An account of somebody else's on this machine."""

import contextlib
import multiprocessing
import os
import pwd
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True, slots=True)
class Account:
    """Another user, who may do what any user of the machine may do."""

    name: str
    uid: int
    gid: int

    def become(self) -> None:
        """For good: only in a process of its own."""
        os.setgroups([])
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        os.chdir("/")

    def does(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 180.0) -> Any:
        """What a function gives in a process of this user's; it raises what was raised there."""
        here, there = multiprocessing.Pipe()

        def child() -> None:
            try:
                self.become()
                there.send(function(*arguments))
            except BaseException as error:  # noqa: BLE001 - told to the test
                there.send(error)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        try:
            assert here.poll(timeout_s), "the other user's process said nothing"
            answer = here.recv()
        finally:
            process.kill()
            process.join(60)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def starts(self, *command: str) -> "subprocess.Popen[bytes]":
        """A process of this user's."""
        return subprocess.Popen(command, cwd="/", preexec_fn=self.become, start_new_session=True)  # noqa: PLW1509


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """What this process starts may have as many open as is usual, however many this machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="session")
def attacker() -> Iterator[Account]:
    """Made for these tests, and removed after them."""
    if os.geteuid() != 0:
        pytest.skip("only root can make another account")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    useradd, userdel = (shutil.which(command, path=path) for command in ("useradd", "userdel"))
    if useradd is None or userdel is None:
        pytest.skip("useradd and userdel are not installed")
    name = f"dask-eve-{os.getpid()}"
    made = subprocess.run([useradd, "--system", "--no-create-home", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no account can be made: {made.stderr.strip()}")
    entry = pwd.getpwnam(name)
    try:
        yield Account(name, entry.pw_uid, entry.pw_gid)
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run([userdel, name], capture_output=True, check=False)
