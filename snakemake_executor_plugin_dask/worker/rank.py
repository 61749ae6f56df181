"""This worker's rank where a launcher started it with others, by its environment alone. Pure, standard library only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: Slurm numbers the batch script's own step, the interactive one and their like from here on.
_SPECIAL_STEPS = 0xFFFFFFF0


@dataclass(frozen=True, slots=True)
class Rank:
    """One of ``size`` processes, ``on_node`` of them on this node."""

    number: int
    size: int
    on_node: int


def rank_of(environ: Mapping[str, str]) -> Rank | None:
    """This process's rank; None where no launcher started it. The innermost launcher that can be told apart wins."""
    for number, size, on_node in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ):
        if number in environ:
            return Rank(_int(environ, number, 0), _int(environ, size, 1), _int(environ, on_node, 1))
    step = _int(environ, "SLURM_STEP_ID", _SPECIAL_STEPS)
    # A batch step has SLURM_PROCID and SLURM_NTASKS too, and is one process.
    if "SLURM_PROCID" in environ and step < _SPECIAL_STEPS:
        tasks = _int(environ, "SLURM_STEP_NUM_TASKS", 1)
        return Rank(_int(environ, "SLURM_PROCID", 0), tasks, _slurm_tasks_here(environ))
    if "PMIX_RANK" in environ:
        return Rank(_int(environ, "PMIX_RANK", 0), 1, 1)
    return None


def _slurm_tasks_here(environ: Mapping[str, str]) -> int:
    """This node's entry in ``SLURM_STEP_TASKS_PER_NODE``, as in ``2(x3),1``."""
    counts: list[int] = []
    for count, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(repeated or 1)
    node = _int(environ, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else 1


def _int(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else default
