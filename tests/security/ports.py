"""What can be done to a port from outside: silence, noise, and looks at what the one who listens makes of it."""

import contextlib
import glob
import os
import random
import re
import resource
import socket
import ssl
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from running import SnakemakeRun

from snakemake_executor_plugin_dask.model.lease_messages import encoded, hello

#: A TLS 1.2 and 1.3 client's first words, to be cut and changed.
CLIENT_HELLO = bytes.fromhex(
    "16030100f8010000f40303" + "5a" * 32 + "20" + "a5" * 32 + "0022130213031301c02cc030009fcca9cca8ccaac02bc02f009e"
    "c024c028006bc023c0270067" + "01000089000b000403000102000a00160014001d0017001e0019001801000101010201030104"
    "00230000001600000017000000" + "0d0030002e040305030603080708080809080a080b080408050806040105010601030302"
    "0303010201030202020402050206020" + "02b00050403040303002d00020101"
)
HTTP = b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nUpgrade: websocket\r\n\r\nhello"
LEASE = encoded(hello("local-0", "abcdefg1")) + encoded({"dead": ["a-b-c"], "last": True})
DASK = (40).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"\x81\xa2op\xa8identity" * 3


def listening(run: SnakemakeRun) -> dict[int, str]:
    """TCP ports on which the run's processes listen, and the address: the kernel's own table."""
    inodes = set()
    for pid in run.processes():
        for descriptor in glob.glob(f"/proc/{pid}/fd/*"):
            with contextlib.suppress(OSError):
                if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor)):
                    inodes.add(found[1])
    ports = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        address, port = fields[1].split(":")
        if fields[3] == "0A" and fields[9] in inodes:
            ports[int(port, 16)] = socket.inet_ntoa(bytes.fromhex(address)[::-1])
    for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            ports[int(fields[1].split(":")[1], 16)] = fields[1].split(":")[0]
    return ports


def hold_open(where: Iterable[tuple[str, int]], each: int) -> list[socket.socket]:
    """Silent connections, as many as go, to each of the ports. For a process of its own: it raises its limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = []
    for address in where:
        for _ in range(each):
            sock = socket.socket()
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(address)
            held.append(sock)
    return held


def silence(where: list[tuple[str, int]], each: int, seconds: float) -> int:
    """Hold them, for the time that whoever came in gets to show who he is; returns how many there were."""
    held = hold_open(where, each)
    time.sleep(seconds)
    return len(held)


def answers(where: list[tuple[str, int]], message: bytes, certificates: list[str]) -> list[bytes]:
    """What comes back from ports where a message is sent over TLS: with these (certificate, then key), and without."""
    found = []
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as shown:
        shown.write("\n".join(certificates))
        shown.flush()
        for address in where:
            for shows in (False, True):
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                if shows:
                    context.load_cert_chain(shown.name)
                plain = socket.socket()
                plain.settimeout(20.0)
                plain.connect(address)
                with contextlib.suppress(OSError), context.wrap_socket(plain) as link:
                    link.sendall(message)
                    if data := link.recv(1000):
                        found.append(data)
                plain.close()
    return found


def noises(seed: int) -> Iterator[bytes]:
    """Bytes that no honest client sends, for ever: cut, changed, repeated and invented ones."""
    chance = random.Random(seed)
    while True:
        data = bytearray(chance.choice((CLIENT_HELLO, HTTP, LEASE, DASK, chance.randbytes(chance.randint(1, 600)))))
        for _ in range(chance.choice((0, 1, 3, 20))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        if chance.random() < 0.1:
            data *= chance.randint(2, 200)
        yield bytes(data)


def fuzz(where: list[tuple[str, int]], count: int, seed: int, seconds: float) -> int:
    """Send noise to the ports in turn, each on a connection of its own; returns how many connections there were.

    An answer is read where one comes. It stops after ``seconds``.
    """
    source = noises(seed)
    until = time.monotonic() + seconds
    held: list[socket.socket] = []
    sent = 0
    while sent < count and time.monotonic() < until:
        sock = socket.socket()
        sock.settimeout(5.0)
        with contextlib.suppress(OSError):
            sock.connect(where[sent % len(where)])
            sock.sendall(next(source))
            sock.setblocking(False)
            sock.recv(100)
        held.append(sock)
        sent += 1
        if len(held) > 100:  # some of them stay for a while
            held.pop(0).close()
    for sock in held:
        sock.close()
    return sent
