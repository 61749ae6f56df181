"""What `--dask-scheduler` names: the address of a Dask scheduler, or the file in which one has written its address."""

import json
import os
import re
from pathlib import Path

_ADDRESS = re.compile(r"(?:tcp|tls)://[^\s/:]+(?:[^\s/]*):\d{1,5}/?")
_WITHOUT_PROTOCOL = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):\d{1,5}", re.ASCII)


def scheduler_address(named: str) -> str:
    """The address, read from the file where one is named. Raises ValueError with the second half of a sentence."""
    if "://" in named:
        if not _ADDRESS.fullmatch(named):
            msg = "is not an address of a Dask scheduler; write it as tcp://host:8786 or tls://host:8786"
            raise ValueError(msg)
        return named
    try:
        content = json.loads(Path(os.path.expanduser(named)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if _WITHOUT_PROTOCOL.fullmatch(named):
            msg = f"is not an address of a Dask scheduler; write tcp://{named} or tls://{named}"
        elif isinstance(error, OSError):
            msg = f"is neither an address (tcp://host:8786) nor a file that can be read ({error.strerror})"
        else:
            msg = "is not a scheduler file, which holds JSON as `dask scheduler --scheduler-file` writes it"
        raise ValueError(msg) from error
    address = content.get("address") if isinstance(content, dict) else None
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        msg = "is not a scheduler file: it names no `address` such as tcp://host:8786"
        raise ValueError(msg)
    return address
