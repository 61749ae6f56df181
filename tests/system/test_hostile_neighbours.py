"""What another user of the same machine can reach of a run, tried from another uid, with and without certificates."""

import asyncio
import glob
import json
import multiprocessing
import os
import re
import secrets
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from distributed.core import rpc
from distributed.security import Security
from running import GENEROUS_S, SnakemakeRun, slowness, snakemake, wait_for

from snakemake_executor_plugin_dask.model.lease_messages import encoded, hello

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")

NOBODY = 65534
SECRET = secrets.token_hex(16)
SNAKEFILE = """
envvars: "TOP_SECRET"

rule work:
    output: "out.txt"
    params: secret=os.environ["TOP_SECRET"]
    shell: "touch started; while ! test -e go; do sleep 0.1; done; touch {output}"
"""


@pytest.fixture(scope="module")
def run() -> Iterator[SnakemakeRun]:
    """A run with a job, a secret and a dashboard, in a directory that others can enter."""
    os.environ["TOP_SECRET"] = SECRET
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    try:
        with snakemake(directory, SNAKEFILE, "--dask-dashboard", "auto", "--dask-keep-successful-logs") as run:
            wait_for((directory / "started").exists, "the job started")
            yield run
            (directory / "go").touch()
            assert run.wait() == 0, run.output
    finally:
        del os.environ["TOP_SECRET"]
        subprocess.run(["rm", "-rf", directory], check=True)


def as_nobody(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of another user."""
    here, there = multiprocessing.Pipe()

    def child() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            there.send(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - told to the test
            there.send(error)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert here.poll(GENEROUS_S), "the other user's process said nothing"
    answer = here.recv()
    process.join(GENEROUS_S)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def listening(run: SnakemakeRun) -> dict[int, str]:
    """TCP ports on which the run's processes listen, and where: the kernel's table."""
    inodes = set()
    for pid in run.processes():
        for descriptor in glob.glob(f"/proc/{pid}/fd/*"):  # none where the process has ended meanwhile
            try:
                found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
            except OSError:
                continue
            if found:
                inodes.add(found[1])
    ports = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and fields[9] in inodes:
                ports[int(port, 16)] = address
    return ports


def dashboard_link(run: SnakemakeRun) -> str:
    return wait_for(lambda: list(run.directory.glob(".snakemake/dask/*/dashboard")), "the link")[0].read_text().strip()


def tls_ports(run: SnakemakeRun) -> list[int]:
    dashboard = int(re.search(r":(\d+)/", dashboard_link(run))[1])
    return sorted(set(listening(run)) - {dashboard})


def talk(port: int, context: ssl.SSLContext | None, first: bytes) -> bytes:
    """What a server says to a stranger before it hangs up; empty where it refuses him."""
    said = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=3.0 * slowness()) as plain:
            sock = plain if context is None else context.wrap_socket(plain)
            sock.sendall(first)
            while data := sock.recv(65536):
                said += data
    except (ssl.SSLError, ConnectionError, TimeoutError):
        pass
    return said


def first_words(run: SnakemakeRun) -> bytes:
    """What a supervisor of the run says first."""
    (event,) = run.events("run-started")
    return encoded(hello("local-0", event["run_id"]))


def context_with(files: tuple[str, str, str] | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if files is not None:
        context.load_cert_chain(files[1], files[2])
    return context


def test_what_listens(run: SnakemakeRun) -> None:
    """Scheduler, worker, leases and the dashboard that was asked for, all on loopback alone."""
    ports = listening(run)
    assert set(ports.values()) == {"0100007F"}
    assert len(ports) == 4, ports


def test_own_certificate_opens_all_doors(run: SnakemakeRun) -> None:
    """The counter-check: with the run's own certificate each of these ports answers."""
    state = next(run.directory.glob(".snakemake/dask/*/tls-key.pem")).parent
    own = context_with(tuple(str(state / f"tls-{name}.pem") for name in ("ca", "cert", "key")))
    assert [bool(talk(port, own, first_words(run))) for port in tls_ports(run)] == [True] * 3


def test_strangers_hear_nothing(run: SnakemakeRun, tmp_path: Path) -> None:
    """Plain TCP, TLS without a certificate or with one of another run: no byte of an answer, to another user either."""
    foreign = Security.temporary()
    files = []
    for name, text in (("ca", foreign.tls_ca_file), ("cert", foreign.tls_client_cert), ("key", foreign.tls_client_key)):
        path = tmp_path / name
        path.write_text(text)
        files.append(str(path))
    contexts = {"none": context_with(None), "foreign": context_with(tuple(files)), "plain": None}
    for name, context in contexts.items():
        for port in tls_ports(run):
            for who in (as_nobody, lambda function, *rest: function(*rest)):
                answer = who(talk, port, context, first_words(run))
                # A TLS server tells a client that does not speak TLS no more than an alert (content type 21).
                assert answer == b"" or (context is None and answer[0] == 21 and len(answer) < 16), (name, answer)


def intrude(ports: list[int], protocol: str, security: Security) -> dict[int, list[str]]:
    """For each port the ways of Dask's own that lead in: to ask a question, and to have work done."""
    arguments = security.get_connection_args("client")
    patience_s = 3 * slowness()

    async def ask(address: str) -> None:
        async with rpc(address, timeout=patience_s, connection_args=arguments) as server:
            await asyncio.wait_for(server.identity(), patience_s)

    async def submit(address: str) -> None:
        async with Client(address, security=security, timeout=patience_s, asynchronous=True) as client:
            assert await asyncio.wait_for(client.submit(abs, -1), 3 * patience_s) == 1

    async def leads_in(way: Callable[[str], Coroutine[Any, Any, None]], port: int) -> bool:
        try:
            await way(f"{protocol}://127.0.0.1:{port}")
        except (OSError, TimeoutError, ImportError):
            return False
        return True

    async def all_ways() -> dict[int, list[str]]:
        tried = [(port, way) for port in ports for way in (ask, submit)]
        found = await asyncio.gather(*(leads_in(way, port) for port, way in tried))
        return {
            port: [way.__name__ for (at, way), led in zip(tried, found, strict=True) if led and at == port]
            for port in ports
        }

    return asyncio.run(all_ways())


@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_strangers_cannot_submit(run: SnakemakeRun, protocol: str) -> None:
    """Dask's own client gets nowhere, at any port, over TCP or with another run's certificate, to any user."""
    security = Security() if protocol == "tcp" else Security.temporary()
    ports = tls_ports(run)
    nowhere: dict[int, list[str]] = {port: [] for port in ports}
    assert as_nobody(intrude, ports, protocol, security) == nowhere
    assert intrude(ports, protocol, security) == nowhere


def test_own_client_can_submit(run: SnakemakeRun) -> None:
    """The counter-check: with the run's own certificate the scheduler answers, and works."""
    state = next(run.directory.glob(".snakemake/dask/*/tls-key.pem")).parent
    names = {"tls_ca_file": "ca", "tls_client_cert": "cert", "tls_client_key": "key"}
    files = {name: str(state / f"tls-{file}.pem") for name, file in names.items()}
    port = scheduler_port(run)
    assert intrude([port], "tls", Security(require_encryption=True, **files)) == {port: ["ask", "submit"]}


def scheduler_port(run: SnakemakeRun) -> int:
    """From a worker's configuration, which only its owner can read."""
    path = next(run.directory.glob(".snakemake/dask/*/workers/local-0.json"))
    return int(json.loads(path.read_text())["scheduler"].rpartition(":")[2])


def test_dashboard_answers_only_under_its_secret_path(run: SnakemakeRun) -> None:
    """Without the secret there is no page, and no redirect that tells it; only the user can read the link."""
    host, port, path = re.fullmatch(r"http://([\d.]+):(\d+)(/\S+)", dashboard_link(run)).groups()
    secret = path.split("/")[1]

    def visit(path: str) -> str:
        with socket.create_connection((host, int(port)), timeout=20.0) as sock:
            sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
            said = b""
            while data := sock.recv(65536):
                said += data
        return said.decode(errors="replace")

    assert " 200 " in visit(path).splitlines()[0]
    for path in ("/", "/status", "/info/main/workers.html", "/json/identity.json", "/api/v1", "/health", "/metrics"):
        said = as_nobody(visit, path)
        assert " 404 " in said.splitlines()[0], (path, said)
        assert secret not in said


def test_nobody_reads_files(run: SnakemakeRun) -> None:
    """Keys, configurations, environment, the dashboard's link: another user can neither open nor list them."""
    state = next(run.directory.glob(".snakemake/dask/*/tls-key.pem")).parent
    files = [path for path in state.rglob("*") if path.is_file()]
    assert {"tls-key.pem", "setup.pickle", "dashboard"} <= {path.name for path in files}
    assert state.stat().st_mode & 0o777 == 0o700
    assert [
        path for path in files if path.stat().st_mode & 0o077 and path.suffix not in {".log", ".dirlock", ".lock"}
    ] == []

    def readable() -> list[str]:
        found = []
        for path in [*files, state]:
            try:
                path.open("rb").close() if path != state else os.listdir(path)
            except PermissionError:
                continue
            found.append(str(path))
        return found

    assert as_nobody(readable) == []
    events = next(run.directory.glob(".snakemake/dask/*.events.jsonl"))
    assert events.stat().st_mode & 0o077 == 0
    assert SECRET not in events.read_text()


def test_secrets_are_on_no_command_line(run: SnakemakeRun) -> None:
    """What `envvars:` names reaches the job by its environment alone, which other users cannot read."""
    processes = run.processes()
    assert len(processes) >= 5
    for pid, command in processes.items():
        assert SECRET not in command, command
        if not command.startswith("sleep"):  # the job's own are gone again soon
            with pytest.raises(PermissionError):
                as_nobody(Path("/proc", str(pid), "environ").read_bytes)
    job = next(pid for pid in run.jobs() if "bash" in processes.get(pid, ""))
    assert f"TOP_SECRET={SECRET}".encode() in Path("/proc", str(job), "environ").read_bytes()


def test_nothing_of_the_run_lies_in_common_directories(run: SnakemakeRun) -> None:
    """No file that a process of the run holds open is where another user could read it."""
    held = set()
    for pid in run.processes():
        for descriptor in glob.glob(f"/proc/{pid}/fd/*"):
            try:
                held.add(os.readlink(descriptor))
            except OSError:
                continue
    common = Path(tempfile.gettempdir())
    found = [Path(name) for name in held if Path(name).is_relative_to(common)]
    assert found
    assert [path for path in found if not path.is_relative_to(run.directory)] == []
