"""The nodes of a job: how its ranks are spread over them, and how launchers are told. Pure.

Documented for users in docs/mpi-gpu.md: with these variables `mpirun -n 4` and `srun -n 4` use exactly the job's nodes.
"""

from collections.abc import Sequence

from snakemake_executor_plugin_dask.model.batch_systems import BatchSystem

HOSTS = "SNAKEMAKE_DASK_HOSTS"  # node1,node2
HOSTFILE = "SNAKEMAKE_DASK_HOSTFILE"  # path: a line for each rank, as PBS writes it

Hosts = tuple[tuple[str, int], ...]  # each node once, with its number of ranks

#: With "none" they keep Open MPI from binding ranks to cores, unless its command says otherwise: up to 4, 5, and from
#: 6 on, which would complain of the second one if it were alone.
UNBOUND = ("OMPI_MCA_hwloc_base_binding_policy", "PRTE_MCA_hwloc_default_binding_policy", "PRTE_MCA_bindto")


def spread(names: Sequence[str], cores: Sequence[int], tasks: int | None) -> Hosts:
    """Ranks on each node, in proportion to the cores held there; without ``tasks``, one for each core.

    A node that is named more than once (several workers share it) counts once, with the sum. Each node gets a rank, as
    long as there are enough.
    """
    held: dict[str, int] = {}
    for name, number in zip(names, cores, strict=True):
        held[name] = held.get(name, 0) + max(1, number)
    ranks = dict.fromkeys(held, 0)
    for _ in range(sum(held.values()) if tasks is None else max(tasks, 1)):
        ranks[min(held, key=lambda name: (ranks[name] > 0, (ranks[name] + 1) / held[name]))] += 1
    return tuple((name, number) for name, number in ranks.items() if number)


def host_file(hosts: Hosts) -> str:
    """What `srun` reads, and batch systems write: a node's name, once for each of its ranks.

    In rounds, each node once before any twice: inside Slurm the launchers start one daemon on each node by an `srun` of
    their own, which takes as many lines from the top as there are nodes.
    """
    rounds = max((ranks for _, ranks in hosts), default=0)
    return "".join(f"{name}\n" for number in range(rounds) for name, ranks in hosts if ranks > number)


def slots_file(hosts: Hosts) -> str:
    """What Open MPI reads. It knows the other form, too, but 5.0 does not count a `localhost` that comes again."""
    return "".join(f"{name} slots={ranks}\n" for name, ranks in hosts)


def hydra_file(hosts: Hosts) -> str:
    """What Hydra (MPICH, Intel MPI) reads; it takes a name that comes again further down for another node."""
    return "".join(f"{name}:{ranks}\n" for name, ranks in hosts)


def host_environment(hosts: Hosts, system: BatchSystem | None, path: str) -> tuple[tuple[str, str | None], ...]:
    """Variables that make each launcher use these nodes.

    ``path`` is where `host_file` was written; with `.slots` and `.hydra` behind it, where `slots_file` and `hydra_file`
    were.
    ``system``: in whose allocation the job runs. In Slurm's `srun` and Open MPI go by its variables first.
    """
    variables: list[tuple[str, str | None]] = [
        (HOSTS, ",".join(name for name, _ in hosts)),
        (HOSTFILE, path),
        ("OMPI_MCA_orte_default_hostfile", f"{path}.slots"),  # Open MPI up to 4
        ("PRTE_MCA_prte_default_hostfile", f"{path}.slots"),  # Open MPI from 5 on
        ("HYDRA_HOST_FILE", f"{path}.hydra"),
    ]
    return (*variables, *(system.host_variables(hosts, path) if system and system.host_variables else ()))
