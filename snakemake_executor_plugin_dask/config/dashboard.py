"""Dask's dashboard: whether and where it is served, and its secret path.

Pure; the scheduler classes that serve it are in `interior/dask_http.py`.
"""

import importlib.util
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from snakemake_executor_plugin_dask.model.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:\s/\[\]]*):)?(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class DashboardPlan:
    """Where the scheduler of the run serves Dask's pages. ``host`` None: no HTTP server at all."""

    host: str | None = None
    port: int = 0  # 0: any free one
    secret: str = ""  # first part of every path that is answered

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """Arguments of `dask_http.scheduler_class`'s class."""
        if self.host is None:
            return {"dashboard": False}
        # Unbracketed hosts of IPv6 would be split at the wrong colon.
        host = f"[{self.host}]" if ":" in self.host else self.host
        return {"dashboard": True, "dashboard_address": f"{host}:{self.port}", "http_prefix": f"/{self.secret}"}


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
            "run pip install 'snakemake-executor-plugin-dask[dashboard]', or omit the setting."
        )
        raise ConfigurationError(msg)
    return DashboardPlan(host, port, new_secret())
