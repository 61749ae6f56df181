"""What runs hold of a cluster of others, and where: by a worker's address, and GPUs by host. Pure.

The GPUs of a host are one place: workers there may see the same ones, and two runs may have met these workers in
another order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from snakemake_executor_plugin_dask.decide.ledger import Others, Part
from snakemake_executor_plugin_dask.driver.attached.shared import Places
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.model.amounts import NOTHING, Amounts


def _gpus_of(member: Member) -> str:
    """The place of its host's GPUs."""
    assert member.facts is not None
    return f"gpus of {member.facts.host}"


def reserved(parts: Iterable[tuple[Member, Part]]) -> Places:
    """What an attempt takes, by its parts."""
    places: dict[str, Amounts] = {}
    for member, part in parts:
        places[member.address] = _of_worker(member, part.amounts)
        gpus = _gpus_of(member)
        places[gpus] = places.get(gpus, NOTHING) + _each(part.devices)
    return places


def _of_worker(member: Member, amounts: Amounts) -> Amounts:
    counted = dict(member.pool.resources)
    extra = tuple((name, amount) for name, amount in amounts.extra if name in counted)
    return Amounts(amounts.cores, amounts.memory_mb, extra=extra)


def capacity(members: Iterable[Member]) -> Places:
    """What there is on these workers, whoever holds it."""
    places: dict[str, Amounts] = {}
    for member in members:
        assert member.facts is not None
        places[member.address] = Amounts(member.facts.cores, member.facts.memory_mb, extra=member.pool.resources)
        gpus = _gpus_of(member)
        places[gpus] = places.get(gpus, NOTHING) + _each(member.facts.devices)
    return places


def claimed(parts: Iterable[tuple[Member, Amounts]], there: Places) -> Places:
    """What is to be left for a waiting job; ``there``: the `capacity` of its workers."""
    places: dict[str, Amounts] = {}
    for member, amounts in parts:
        places[member.address] = _of_worker(member, amounts)
        if amounts.gpus:  # which of the host's it will have is not known
            places[_gpus_of(member)] = there[_gpus_of(member)]
    return places


def _each(devices: Sequence[str]) -> Amounts:
    return Amounts(extra=tuple((device, 1) for device in sorted(devices)))


def all_of(member: Member) -> Others:
    """Nothing more is placed on a worker that is about to be closed."""
    assert member.facts is not None
    return Others(capacity([member])[member.address], member.facts.devices)


def others(held: Places, member: Member) -> Others:
    """What other runs hold of a worker."""
    assert member.facts is not None
    gpus = held.get(_gpus_of(member), NOTHING)
    devices = tuple(device for device in member.facts.devices if gpus.of(device))
    used = held.get(member.address, NOTHING)
    counted = tuple((name, used.of(name)) for name, _ in member.pool.resources)
    return Others(replace(used, extra=counted), devices)
