"""How many descriptors this process may have open. Standard library only; changes this process's limit."""

import contextlib
import functools
import resource

_ENOUGH = 1 << 16  # limits of a thousand million make programs slow that close "all" descriptors


@functools.cache
def _found() -> int:
    """The soft limit with which this process was started."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_limit() -> None:
    """From now on this process may have as many open as its hard limit allows, up to 65,536. May be repeated."""
    soft, hard = _found(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(_ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def restore(pid: int) -> None:
    """Give a child the limit that this process had: batch systems hand a submit command's limits on to allocations."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (_found(), hard))
