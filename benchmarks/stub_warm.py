"""Stands in for the warm process in the dispatch benchmark: each job is a child that touches its output and ends.

Speaks the supervisor's protocol (`model.job_messages`) and imports nothing of Snakemake, so that what is left of a
job's cost is its way.
"""

import os
import pickle
import select
import socket
import sys
import time

from snakemake_executor_plugin_dask.model.job_messages import Exited, Forked, Setup, Start, Warm
from snakemake_executor_plugin_dask.model.wire import Channel

OUTPUT = 5  # of warmcall.Call


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
    channel = Channel(sock)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    children: dict[int, tuple[int, str]] = {}
    try:
        while True:
            for descriptor, _ in poll.poll():
                if descriptor != sock.fileno():
                    poll.unregister(descriptor)
                    os.close(descriptor)
                    pid, key = children.pop(descriptor)
                    _, status, used = os.wait4(pid, 0)
                    channel.send(Exited(key, status, used.ru_utime + used.ru_stime))
                    continue
                message = channel.receive()
                if isinstance(message, Setup):
                    os.chdir(message.setup.workdir)
                    channel.send(Warm(3))
                elif isinstance(message, Start):
                    spec = message.spec
                    pid = os.fork()
                    if pid == 0:
                        for path in pickle.loads(spec.call)[OUTPUT]:
                            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                            output = os.open(path, os.O_WRONLY | os.O_CREAT)
                            os.write(output, str(time.time()).encode())
                        os._exit(0)
                    child = os.pidfd_open(pid)
                    children[child] = pid, spec.key
                    poll.register(child, select.POLLIN)
                    channel.send(Forked(spec.key, pid, 3))
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
