"""`snakemake-dask pools --from-slurm`: a pools file for this site, from what Slurm tells about its nodes.

Asks `sinfo`, `scontrol` and, where there is accounting, `sacctmgr`; starts nothing. A pool for each kind of node in the
partitions that the user may use, in the order in which jobs should try them.
"""

import argparse
import grp
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from snakemake_executor_plugin_dask.batch.allocations import Ran, run_here, user_name
from snakemake_executor_plugin_dask.batch.sinfo import MIB, SINFO_FORMAT, NodeKind, parse_sinfo
from snakemake_executor_plugin_dask.config.poolsfile import read_pools_file
from snakemake_executor_plugin_dask.model import units
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.pools import unique_name
from snakemake_executor_plugin_dask.model.printed import clean_block

Run = Callable[[Sequence[str]], Ran]

_MOST_WORKERS = 10
_LONGEST_S = 86400.0  # a longer walltime waits longer in the queue, and few jobs need it
#: Nodes in these states take no jobs at the moment, and may never again.
_AWAY = ("down", "drain", "drng", "fail", "maint", "unk", "inval", "futr")


@dataclass(frozen=True, slots=True)
class Partition:
    """What `scontrol show partition` tells. Empty sets: everybody."""

    name: str
    up: bool
    groups: frozenset[str] = frozenset()
    accounts: frozenset[str] = frozenset()
    denied_accounts: frozenset[str] = frozenset()
    qos: frozenset[str] = frozenset()
    root_only: bool = False
    preempted: bool = False
    most_cores: int | None = None  # on a node
    most_memory_mib: int | None = None
    weights: tuple[tuple[str, float], ...] = ()  # of TRESBillingWeights; memory is for each MiB


@dataclass(frozen=True, slots=True)
class User:
    """Who asks. ``accounts`` and ``qos`` are None where Slurm has no accounting that says."""

    name: str
    groups: frozenset[str]
    accounts: frozenset[str] | None = None
    qos: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """Nodes of one size in one partition."""

    node: NodeKind
    number: int  # of nodes that take jobs
    cost: float | None  # of a whole node for an hour, in the site's billing units
    account: str | None = None  # the partition takes no other
    preempted: bool = False  # jobs there may have to make room for others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command `pools`."""
    parser.add_argument("--from-slurm", action="store_true", required=True, help="ask this site's Slurm")
    parser.add_argument("-o", "--output", metavar="FILE", help="write to this file instead of standard output")


def write(options: argparse.Namespace) -> None:
    """The command `pools`. ConfigurationError with one sentence; a file that is there is kept."""
    text = pools_text(run_here)
    if options.output is None:
        sys.stdout.write(clean_block(text))
        return
    try:
        with Path(options.output).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        msg = f"{options.output} already exists; name another file, or remove it."
        raise ConfigurationError(msg) from None
    except OSError as error:
        msg = f"{options.output} cannot be written: {error.strerror}."
        raise ConfigurationError(msg) from error


def pools_text(run: Run) -> str:
    """The pools file. ConfigurationError where Slurm does not answer, or has nothing for this user."""
    listed = run(["sinfo", "--noheader", "--exact", f"--format={SINFO_FORMAT}|%t"])
    shown = run(["scontrol", "show", "partition", "--oneliner"])
    for command, done in (("sinfo", listed), ("scontrol show partition", shown)):
        if done.code != 0:
            said = (done.err.strip() or f"it ended with exit code {done.code}").splitlines()[0]
            msg = f"`{command}` does not tell what this site has ({said}); run this where Slurm's commands work."
            raise ConfigurationError(msg)
    partitions = {partition.name: partition for partition in _parse_partitions(shown.out)}
    user = _user(run)
    kinds, left_out = _choose(_parse_nodes(listed.out), partitions, user)
    if not kinds:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out) or "sinfo shows none"
        msg = f"Slurm has no partition here that {user.name} may use ({why})."
        raise ConfigurationError(msg)
    text = _render(kinds, left_out, user)
    with tempfile.TemporaryDirectory(prefix="snakemake-dask-") as directory:
        path = Path(directory, "pools.yaml")
        path.write_text(text, encoding="utf-8")
        read_pools_file(path)  # what is written passes the check
    return text


# What Slurm says


def _parse_nodes(out: str) -> list[tuple[NodeKind, int]]:
    """Kinds of node with the number of those that take jobs, from lines of `%P|%l|%L|%c|%m|%G|%f|%D|%t`."""
    found: dict[NodeKind, int] = {}
    for line in out.splitlines():
        told, _, state = line.rpartition("|")
        away = state.strip().rstrip("*~#!%$@^-").startswith(_AWAY)
        for kind in parse_sinfo(told):
            plain = replace(kind, features=frozenset(), nodes=0)  # of one size: one kind
            known = next((other for other in found if replace(other, features=frozenset()) == plain), plain)
            number = found.pop(known, 0) + (0 if away else kind.nodes)
            found[replace(plain, features=known.features | kind.features)] = number
    return list(found.items())


def _parse_partitions(out: str) -> list[Partition]:
    """Lines of `scontrol show partition --oneliner`."""
    partitions = []
    for line in out.splitlines():
        values = dict(word.partition("=")[::2] for word in line.split())
        if "PartitionName" not in values:
            continue
        partitions.append(
            Partition(
                name=values["PartitionName"],
                up=values.get("State", "UP") == "UP",
                groups=_names(values.get("AllowGroups", "ALL")),
                accounts=_names(values.get("AllowAccounts", "ALL")),
                denied_accounts=_names(values.get("DenyAccounts", "ALL")),
                qos=_names(values.get("AllowQos", "ALL")),
                root_only=values.get("RootOnly") == "YES",
                preempted=values.get("PreemptMode", "OFF") != "OFF",
                most_cores=_number(values.get("MaxCPUsPerNode", "")),
                most_memory_mib=_number(values.get("MaxMemPerNode", "")),
                weights=_weights(values.get("TRESBillingWeights", "")),
            )
        )
    return partitions


def _names(text: str) -> frozenset[str]:
    return frozenset() if text in ("ALL", "", "(null)") else frozenset(text.split(","))


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _weights(text: str) -> tuple[tuple[str, float], ...]:
    found = []
    for name, number, unit in re.findall(r"([\w/:]+)=([\d.]+)([KMGT]?)", text):
        # Without a unit, memory counts by MiB.
        divisor = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[unit] if name.lower() == "mem" else 1
        found.append((name.lower(), float(number) / divisor))
    return tuple(found)


def _user(run: Run) -> User:
    name = user_name()
    groups = set()
    for number in os.getgroups():
        try:
            groups.add(grp.getgrgid(number).gr_name)
        except KeyError:  # it has no name here
            continue
    asked = run(["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={name}", "format=account,qos"])
    rows = [line.split("|") for line in asked.out.splitlines() if line.count("|") == 1] if asked.code == 0 else []
    if not rows:
        return User(name, frozenset(groups))
    accounts = frozenset(account for account, _ in rows)
    qos = frozenset(one for _, several in rows for one in several.split(",") if one)
    return User(name, frozenset(groups), accounts, qos)


# Decisions


def _choose(
    nodes: Sequence[tuple[NodeKind, int]], partitions: Mapping[str, Partition], user: User
) -> tuple[list[Kind], list[tuple[str, str]]]:
    """The kinds to have pools for, in order, and the partitions that are left out, each with the reason."""
    found: list[Kind] = []
    left_out: list[tuple[str, str]] = []
    for name in dict.fromkeys(kind.partition for kind, _ in nodes):
        partition = partitions.get(name) or Partition(name, up=True)
        here = [(kind, number) for kind, number in nodes if kind.partition == name]
        if why := _not_for(partition, user):
            left_out.append((name, why))
        elif not any(number for _, number in here):
            left_out.append((name, "none of its nodes takes jobs now"))
        else:
            account = _account(partition, user)
            for kind, number in here:
                if number:
                    limited = _limited(kind, partition)
                    found.append(Kind(limited, number, _cost(limited, partition), account, partition.preempted))
    kinds, covered = _ordered(found)
    return kinds, [*left_out, *covered]


def _not_for(partition: Partition, user: User) -> str:
    """Why the user cannot use the partition; empty: nothing is known against it."""
    if not partition.up:
        return "it is not up"
    if partition.root_only and user.name != "root":
        return "it is for root alone"
    if partition.groups and not partition.groups & user.groups and user.name != "root":
        return f"it is for the groups {_listed(partition.groups)}"
    if user.accounts is not None:
        if partition.accounts and not partition.accounts & user.accounts:
            return f"it is for the accounts {_listed(partition.accounts)}"
        if partition.denied_accounts and user.accounts <= partition.denied_accounts:
            return "it refuses your accounts"
    if user.qos is not None and partition.qos and not partition.qos & user.qos:
        return f"it is for the QOS {_listed(partition.qos)}"
    return ""


def _account(partition: Partition, user: User) -> str | None:
    """The account to name, where not every one of the user's will do."""
    if not user.accounts:
        return None
    good = user.accounts - partition.denied_accounts
    good = good & partition.accounts if partition.accounts else good
    return min(good, default=None) if good != user.accounts else None


def _limited(kind: NodeKind, partition: Partition) -> NodeKind:
    """What one job may have of the node."""
    return replace(
        kind,
        cores=min(kind.cores, partition.most_cores or kind.cores),
        memory_mib=min(kind.memory_mib, partition.most_memory_mib or kind.memory_mib),
    )


def _cost(kind: NodeKind, partition: Partition) -> float | None:
    if not partition.weights:
        return None
    weights = dict(partition.weights)
    cost = kind.cores * weights.get("cpu", 0.0) + kind.memory_mib * weights.get("mem", 0.0)
    for model, number in kind.gpus:
        cost += number * weights.get(f"gres/gpu:{model}".lower(), weights.get("gres/gpu", 0.0))
    return cost


def _gpus(kind: NodeKind) -> int:
    return sum(number for _, number in kind.gpus)


def _ordered(kinds: Sequence[Kind]) -> tuple[list[Kind], list[tuple[str, str]]]:
    """Without GPUs first; then what costs least, where the site bills all of them; then the smallest, the shortest.

    And the partitions of which nodes are left out, since no job would ever come to them, each with the reason.
    """
    billed = all(kind.cost is not None for kind in kinds)

    def order(kind: Kind) -> tuple[float, ...]:
        node = kind.node
        cost = (kind.cost or 0.0) if billed else 0.0
        limit = math.inf if node.limit_s is None else node.limit_s
        memory_mib = node.memory_mib if node.memory_mib > 1 else 1000 * node.cores  # it is not known
        return (_gpus(node) > 0, cost, memory_mib, node.cores, _gpus(node), limit, not node.default)

    kept: list[Kind] = []
    covered: list[tuple[str, str]] = []
    for kind in sorted(kinds, key=order):
        # The same nodes in a partition that has no longer limit: no job would ever come to it.
        if other := next((other for other in kept if _covers(other, kind)), None):
            why = f"its nodes of {kind.node.cores} cores are in partition {other.node.partition}, too, for as long"
            covered.append((kind.node.partition, why))
        else:
            kept.append(kind)
    return kept, covered


def _covers(first: Kind, second: Kind) -> bool:
    one, two = first.node, second.node
    same = (one.cores, one.memory_mib, one.gpus) == (two.cores, two.memory_mib, two.gpus)
    return same and (one.limit_s is None or (two.limit_s is not None and two.limit_s <= one.limit_s))


# Text


_HEAD = """\
# Pools for this site's Slurm, written by `snakemake-dask pools --from-slurm` for {user}.
# Use it with `snakemake --executor dask --dask-pools FILE`; see first what it means with `--dask-plan`.
#
# A job goes to the first pool that can hold it. Hence their order:
# {order}.
# Move, change and remove what you like. Each worker holds a whole node, so that many jobs share it; smaller workers
# (cores and memory halved, say, and job_mem with them) may start earlier where nodes are never empty.
"""


def _render(kinds: Sequence[Kind], left_out: Sequence[tuple[str, str]], user: User) -> str:
    """The file's text."""
    billed = all(kind.cost is not None for kind in kinds)
    order = ["what costs least, as the site bills it"] if billed else []
    order.append("small nodes before large ones, so that these stay free for jobs that need them")
    if any(_gpus(kind.node) for kind in kinds):
        order.append("GPUs last")
    lines = [_HEAD.format(user=user.name, order="; ".join(order)).rstrip("\n")]
    if user.accounts is not None and len(user.accounts) > 1:
        lines.append(
            f"# Your accounts: {_listed(user.accounts)}. To use another one than your default, name it in the options."
        )
    lines += [f"# Left out: partition {name} ({why})." for name, why in left_out]
    lines += ["", "pools:"]
    taken: set[str] = set()
    partitions = [kind.node.partition for kind in kinds]
    for kind in kinds:
        name = _pool_name(kind.node, partitions.count(kind.node.partition) > 1, taken)
        taken.add(name)
        lines += _pool(kind, name)
    return "\n".join(lines) + "\n"


def _pool(kind: Kind, name: str) -> list[str]:
    node = kind.node
    counted = node.memory_mib > 1
    memory_mib = node.memory_mib if counted else 1000 * node.cores
    size = f"{node.cores} cores" + (f", {units.format_memory(memory_mib * MIB // 10**6)}" if counted else "")
    if node.gpus:
        size += ", " + ", ".join(f"{number} {model or 'GPU'}{'' if model else 's'}" for model, number in node.gpus)
    limit = "without a time limit" if node.limit_s is None else f"at most {units.format_duration(node.limit_s)}"
    about = f"  # Partition {node.partition}{' (the default)' if node.default else ''}: {kind.number} "
    about += f"node{'s' * (kind.number != 1)} with {size}; {limit}"
    if kind.cost is not None:
        about += f"; a node is billed {kind.cost:g} an hour"
    if kind.preempted:
        about += "; its jobs may be preempted"
    lines = ["", f"{about}."]
    if features := node.features - {"null"}:
        lines.append(f'  # Features, for job_extra_directives: ["--constraint=NAME"]: {_listed(features)}.')
    walltime_s = _LONGEST_S if node.limit_s is None else min(node.limit_s, _LONGEST_S)
    longer = "  # longer is possible, and waits longer" if walltime_s != node.limit_s else ""
    lines += [
        f"  {name}:",
        "    cluster: slurm",
        f"    workers: 0-{min(kind.number, _MOST_WORKERS)}",
        f"    cores: {node.cores}",
        f"    memory: {memory_mib} MiB" + ("" if counted else "  # Slurm does not say: correct it"),
        f"    walltime: {units.format_duration(walltime_s)}{longer}",
    ]
    options: dict[str, object] = {"queue": node.partition}
    if kind.account is not None:
        options["account"] = kind.account
    # Exact: otherwise it is rounded up, and may be more than the node has.
    options["job_mem"] = f"{node.memory_mib}M" if counted else "0"
    if node.gpus:
        lines.append(f"    gpus: {_gpus(node)}")
        models = [model for model, _ in node.gpus if model]
        if len(models) == 1:
            lines.append(f"    gpu_model: {json.dumps(models[0])}")
        wanted = ",".join(f"gpu:{model}:{number}" if model else f"gpu:{number}" for model, number in node.gpus)
        options["job_extra_directives"] = [f"--gres={wanted}"]
    return [*lines, f"    options: {json.dumps(options)}"]


def _pool_name(node: NodeKind, several: bool, taken: Collection[str]) -> str:
    parts = [node.partition]
    if several:
        parts.append(f"{node.cores}c")
        parts += [f"{round(node.memory_mib / 1024)}g"] if node.memory_mib > 1 else []
        parts += [model or "gpu" for model, _ in node.gpus]
    return unique_name(parts, taken, "nodes")


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
