"""What kind of file system holds a directory, and whether a process sees the same ones as this one. Reads /proc."""

import os
import re

#: Kept on this machine's own disks or in its memory. It may still export them, so this is a guess.
_OWN = frozenset(("tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "squashfs"))


def sees_others(pid: int) -> bool:
    """Whether a process has another root or other mounts than this one, as in a container, or that cannot be told."""
    try:
        mounts, root = os.readlink(f"/proc/{pid}/ns/mnt"), os.stat(f"/proc/{pid}/root")
    except OSError:
        return True
    return mounts != os.readlink("/proc/self/ns/mnt") or not os.path.samestat(root, os.stat("/"))


def own_file_system(directory: str, mounts: str | None = None) -> str:
    """The kind of file system, where it is one of this machine's own; empty where it is a network's, or not known.

    ``mounts``: as /proc/self/mountinfo lists them, which is read unless given.
    """
    if mounts is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                mounts = file.read()
        except OSError:
            return ""
    held = ("", "")
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])
        # Of two mounts at one place the later one lies on top.
        if len(point) >= len(held[0]) and os.path.commonpath((point, directory)) == point:
            held = (point, right.split()[0])
    return held[1] if held[1] in _OWN else ""
