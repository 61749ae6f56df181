"""The files of Dask's configuration, found as Dask finds them (`dask.config`), and without it."""

import contextlib
import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path


def files(environment: Mapping[str, str]) -> list[Path]:
    """Those that are there and can be read, the site's before the user's."""
    places = [environment.get("DASK_ROOT_CONFIG", "/etc/dask")]
    places += [os.path.join(prefix, "etc", "dask") for prefix in (sys.prefix, *site.PREFIXES)]
    places.append(os.path.expanduser("~/.config/dask"))
    places += [given] if (given := environment.get("DASK_CONFIG")) else []
    found: list[Path] = []
    for place in map(Path, dict.fromkeys(places)):
        with contextlib.suppress(OSError):  # what may not be read Dask passes over, too
            if place.is_dir():
                found += sorted(path for path in place.iterdir() if path.suffix.lower() in (".json", ".yaml", ".yml"))
            elif place.exists():
                found.append(place)
    return found
