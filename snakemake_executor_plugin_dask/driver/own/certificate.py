"""TLS of a run's own cluster: one certificate, made for the run, which is its own authority."""

import os
import ssl
from pathlib import Path
from typing import NamedTuple

from distributed.security import Security

from snakemake_executor_plugin_dask.node.certificate import self_signed
from snakemake_executor_plugin_dask.node.private import write_private
from snakemake_executor_plugin_dask.node.state import TLS_FILES

_ROLES = ("client", "scheduler", "worker")


class TLSFiles(NamedTuple):
    """Paths of the run's certificate authority, certificate and key (0600, in the state directory)."""

    ca: str
    cert: str
    key: str


def make_tls(state_dir: Path) -> tuple[Security, TLSFiles]:
    """A certificate for this run alone, in memory for the driver and in files that only the user can read."""
    cert, key = self_signed()
    paths = TLSFiles(*(os.fspath(state_dir / name) for name in TLS_FILES))
    for path, text in zip(paths, (cert, cert, key), strict=True):
        write_private(Path(path), text.encode())
    each = {f"tls_{role}_{what}": text for role in _ROLES for what, text in (("cert", cert), ("key", key))}
    return Security(require_encryption=True, tls_ca_file=cert, **each), paths


def server_context(files: TLSFiles) -> ssl.SSLContext:
    """For servers that accept only holders of the run's certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
