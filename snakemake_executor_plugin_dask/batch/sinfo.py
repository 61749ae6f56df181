"""What Slurm's `sinfo` tells of a partition's nodes. Pure, but for the command, which is passed in."""

import re
from collections.abc import Callable, Mapping, Sequence

from snakemake_executor_plugin_dask.batch.allocations import Ran
from snakemake_executor_plugin_dask.batch.meanings import no_such
from snakemake_executor_plugin_dask.model.batch_systems.slurm import SLURM
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.frozen import dataclass

MIB = 2**20
SINFO_FORMAT = "%P|%l|%L|%c|%m|%G|%f|%D"


@dataclass(frozen=True, slots=True)
class NodeKind:
    """One kind of node in a partition, as `sinfo` tells it; memory in MiB, GPUs by model (empty text: none given)."""

    partition: str
    default: bool
    limit_s: float | None
    default_time_s: float | None
    cores: int
    memory_mib: int
    gpus: tuple[tuple[str, int], ...]
    features: frozenset[str]
    nodes: int  # so many of them

    @property
    def memory_mb(self) -> int:
        """In 10^6 bytes; 0: Slurm does not count memory there."""
        return self.memory_mib * MIB // 10**6 if self.memory_mib > 1 else 0


def node_kinds(
    whose: str,
    wanted: Mapping[str, str],
    partition: str | None,
    cluster: str | None,
    run: Callable[[Sequence[str]], Ran],
) -> tuple[list[NodeKind], str]:
    """The kinds of node in a partition (without one: in the default), and why sinfo does not tell, or an empty text.

    ConfigurationError where there is no such partition, or no such node in it.
    """
    clusters = [f"--clusters={cluster}"] if cluster else []
    named = [f"--partition={partition}"] if partition else []
    done = run(["sinfo", "--noheader", "--exact", f"--format={SINFO_FORMAT}", *named, *clusters])
    if done.code != 0:
        return [], (done.err.strip() or f"it ended with {done.code}").splitlines()[0]
    kinds = parse_sinfo(done.out)
    if partition is None:
        kinds = [kind for kind in kinds if kind.default] or kinds
    if not kinds:
        raise ConfigurationError(_no_partition(whose, wanted, partition, run([*SLURM.queues, *clusters])))
    constraint = wanted.get("constraint")
    fitting = [kind for kind in kinds if _has(kind, constraint)]
    if not fitting:
        known = sorted(set().union(*(kind.features for kind in kinds)) - {"null"})
        have = ", ".join(known) or "no features"
        msg = (
            f"{whose}: no node of partition {kinds[0].partition} has {constraint} (they have {have}); "
            "change constraint."
        )
        raise ConfigurationError(msg)
    return fitting, ""


def _no_partition(whose: str, wanted: Mapping[str, str], partition: str | None, listed: Ran) -> str:
    known = set(listed.out.split())
    if partition is None:
        return f"{whose}: Slurm has no default partition; give slurm_partition ({', '.join(sorted(known))})."
    change = f"change {'slurm_partition' if 'slurm_partition' in wanted else '`queue` in the options'}"
    unknown = next((part for part in partition.split(",") if part not in known), None)
    if unknown is None or not known:
        return f"{whose}: partition {partition} has no nodes; {change}."
    return f"{whose}: {no_such('partition', unknown, known, change)}."


def parse_sinfo(out: str) -> list[NodeKind]:
    """Lines of `sinfo --format=%P|%l|%L|%c|%m|%G|%f|%D`."""
    kinds = []
    for line in out.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 8 or not fields[0]:
            continue  # "CLUSTER: name"
        name, limit, default_time, cores, memory, gres, features, nodes = fields
        kinds.append(
            NodeKind(
                partition=name.rstrip("*"),
                default=name.endswith("*"),
                limit_s=_seconds(limit),
                default_time_s=_seconds(default_time),
                cores=int(cores.rstrip("+")),
                memory_mib=int(memory.rstrip("+")),
                gpus=_gpus(gres),
                features=frozenset(re.findall(r"[^,\s()]+", features)),
                nodes=int(nodes),
            )
        )
    return kinds


def _seconds(text: str) -> float | None:
    try:
        return SLURM.parse_walltime(text)
    except ValueError:
        return None  # infinite, n/a


def _gpus(gres: str) -> tuple[tuple[str, int], ...]:
    found = re.findall(r"(?:^|,)gpu(?::([A-Za-z][^:,()]*))?(?::(\d+))?", gres)
    return tuple((model, int(number or 1)) for model, number in found)


def _has(kind: NodeKind, constraint: str | None) -> bool:
    """Whether the nodes have the features; a constraint with more than names and one operator counts as met."""
    if not constraint or not re.fullmatch(r"[\w.-]+(?:(?:&[\w.-]+)*|(?:\|[\w.-]+)*)", constraint):
        return True
    names = set(re.split(r"[&|]", constraint))
    return bool(names & kind.features) if "|" in constraint else names <= kind.features
