"""Dask's dashboard: whether and where it is served, its secret path, and the names of tasks on it.

Reads the settings and writes the file with the link. Nothing of Dask is imported until a scheduler or worker class is
asked for (they live in `quiet`).
"""

import hashlib
import importlib.util
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from snakemake_executor_plugin_dask.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
_HEX_WORD = re.compile(r"[0-9a-f]{8}", re.IGNORECASE)
_HEX_NAME = re.compile(r"[0-9a-f]{32}")
_FIRST_WORD = re.compile(r"[^\W\d_]\w*")
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:\s/\[\]]*):)?(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class DashboardPlan:
    """Where the scheduler of the run serves Dask's pages. ``host`` None: no HTTP server at all."""

    host: str | None = None
    port: int = 0  # 0: any free one
    secret: str = ""  # first part of every path that is answered

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """Arguments for the class of `scheduler_class`."""
        if self.host is None:
            return {"dashboard": False}
        # Unbracketed hosts of IPv6 would be split at the wrong colon.
        host = f"[{self.host}]" if ":" in self.host else self.host
        return {"dashboard": True, "dashboard_address": f"{host}:{self.port}", "http_prefix": f"/{self.secret}"}

    def scheduler_class(self) -> type[Any]:
        """A subclass of Dask's Scheduler. Imports Dask."""
        from snakemake_executor_plugin_dask.observe import quiet

        return quiet.QuietScheduler if self.host is None else quiet.DashboardScheduler


def dashboard_options(
    setting: str, *, new_secret: Callable[[], str] = lambda: secrets.token_urlsafe(24), have_bokeh: bool | None = None
) -> DashboardPlan:
    """The plan for ``none``, ``auto`` or an address (``host:port``, ``:port``, ``port``).

    An address without a host means loopback. Raises ConfigurationError for anything else, and where bokeh is missing.
    """
    setting = setting.strip()
    if setting.lower() in ("", "none"):
        return DashboardPlan()
    host, port = LOOPBACK, 0
    if setting.lower() != "auto":
        match = _ADDRESS.fullmatch(setting)
        if match is None or int(match["port"]) > 65535:
            msg = (
                f"--dask-dashboard {setting!r}: expected 'auto', 'none' or an address such as 127.0.0.1:8787 "
                "(host, colon, port up to 65535)."
            )
            raise ConfigurationError(msg)
        host, port = (match["host"] or LOOPBACK).strip("[]"), int(match["port"])
    if have_bokeh is None:
        have_bokeh = importlib.util.find_spec("bokeh") is not None
    if not have_bokeh:
        msg = (
            f"--dask-dashboard {setting} needs bokeh, which is not installed: "
            "run pip install 'snakemake-executor-plugin-dask[dashboard]', or leave the setting away."
        )
        raise ConfigurationError(msg)
    return DashboardPlan(host, port, new_secret())


def write_link(path: str | os.PathLike[str], link: str) -> None:
    """Write the link into a file that only the user can read, whatever stood there before. Raises OSError."""
    new = f"{os.fspath(path)}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, f"{link}\n".encode())
    finally:
        os.close(descriptor)
    os.replace(new, path)


def task_key(rule: str, run_id: str, jobid: str | int, attempt: int, run: int) -> str:
    """The key of one attempt, unique in Dask, by which Dask's pages group and colour tasks by rule.

    Dask takes from a key the words up to the first one that is not made of letters alone (`dask.utils.key_split`).
    """
    # A run id of letters alone would count as part of the rule's name.
    unmistakable = run_id if any(c.isdigit() for c in run_id) else f"0{run_id}"
    return f"{task_group(rule)}-{unmistakable}-{jobid}-{attempt}.{run}"


def task_group(rule: str) -> str:
    """What Dask will show for a rule: its name; where Dask would misread that, a readable and unique form of it."""
    first, *words = rule.split("-")
    if (
        len(rule) <= 80
        and _FIRST_WORD.fullmatch(first)
        and all(word.isalpha() and not (len(word) == 8 and _HEX_WORD.match(word)) for word in words)
        and not _HEX_NAME.fullmatch(rule)
    ):
        return rule
    digest = hashlib.sha256(rule.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    readable = re.sub(r"\W", "_", rule)[:40].strip("_")
    if not _FIRST_WORD.match(readable):
        readable = f"rule_{readable}".rstrip("_")
    return f"{readable}.{digest}"


def __getattr__(name: str) -> Any:
    """`QuietScheduler`, `QuietWorker`, `DashboardScheduler`: imported with Dask, at first use."""
    if name in ("QuietScheduler", "QuietWorker", "DashboardScheduler"):
        from snakemake_executor_plugin_dask.observe import quiet

        return getattr(quiet, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
