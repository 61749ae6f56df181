"""Which cluster that stays a run is to use, from its settings and this machine. Reads what is written down of them."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from snakemake_executor_plugin_dask.kept import directory
from snakemake_executor_plugin_dask.kept.place import root
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.kept import Asked, Kept, asked_of_pools, differences, name_of
from snakemake_executor_plugin_dask.model.options import Options


def asked_for(options: Options, environment: Mapping[str, str]) -> Asked:
    """What a cluster with these settings is recognised by."""
    here = any(pool.kind.here or pool.kind.launched for pool in options.pools)
    return asked_of_pools(options) | directory.this_installation(environment, here=here)


def named(name: str, options: Options, environment: Mapping[str, str]) -> Options:
    """The options with the pools of this cluster. ConfigurationError where none of this name is up."""
    record = directory.read(root(environment) / name)
    if directory.of_another_version(root(environment) / name):
        msg = f"Cluster {name} was brought up by another version of the plugin, whose own commands use and stop it."
        raise ConfigurationError(msg)
    if record is None or directory.fate(root(environment) / name) == "dead":
        up = [path.name for path, _, fate in directory.all_clusters(environment) if fate != "dead"]
        there = f"those that are up: {', '.join(up)}" if up else "none is up"
        msg = f"--dask-scheduler is {name!r}, and no cluster of this name is up; {there} (`snakemake-dask clusters`)."
        raise ConfigurationError(msg)
    ours = directory.this_installation(environment, here=False)["installation"]
    if found := differences({"installation": record.asked["installation"]}, {"installation": ours}):
        msg = f"Cluster {name} was brought up by another installation: {'; '.join(found)}."
        raise ConfigurationError(msg)
    theirs = record.options
    pools = theirs.pools if theirs.slurm_template is None else (theirs.slurm_template,)
    made = theirs.slurm_template is not None
    options = dataclasses.replace(options, pools=pools, make_slurm_pools=made, kept=name, local_by_default=False)
    return _placed_as(theirs, options)


def _placed_as(theirs: Options, options: Options) -> Options:
    return dataclasses.replace(
        options,
        scheduler_interface=theirs.scheduler_interface,
        scheduler_host=theirs.scheduler_host,
        scheduler_port=theirs.scheduler_port,
    )


def going_to(asking: Options, environment: Mapping[str, str]) -> tuple[Path, directory.Record] | None:
    """The cluster that is up and that the run is going to use; None: there is none, or nobody here can tell."""
    clusters = root(environment)
    if asking.kept is None and not clusters.is_dir():
        return None
    where = clusters / (asking.kept or name_of(asked_for(asking, environment)))
    try:
        record = directory.read(where) if directory.fate(where) == "alive" else None
    except OSError:
        record = None
    return None if record is None else (where, record)


def completed(asking: Options, environment: Mapping[str, str]) -> Options | None:
    """The options with the pools of the cluster that the run is going to use, as they are there; None: none is up."""
    there = going_to(asking, environment)
    if there is None:
        return None
    theirs = there[1].options
    return _placed_as(theirs, dataclasses.replace(asking, pools=theirs.pools, slurm_template=theirs.slurm_template))


def choose(asking: Options, options: Options, environment: Mapping[str, str]) -> tuple[Kept | None, list[str]]:
    """The cluster that a run uses, None: one of its own; and why it uses none of those that are up.

    ``asking``: the options as the user gave them; ``options``: with all that was completed since.
    """
    clusters = root(environment)
    if options.kept is not None:
        record = directory.read(clusters / options.kept)
        asked: Asked = {} if record is None else record.asked
        return Kept(options.kept, os.fspath(clusters / options.kept), asked, options, options.keep_s, named=True), []
    if any(pool.kind.found for pool in options.pools) or not (options.keep_s or clusters.is_dir()):
        return None, []
    asked = asked_for(asking, environment)
    name = name_of(asked)
    try:
        directory.check(clusters / name)
        up = directory.fate(clusters / name) != "dead"
        others = [(path, record) for path, record, fate in directory.all_clusters(environment) if fate == "alive"]
    except OSError as error:
        if not options.keep_s:
            return None, []
        msg = f"Clusters that stay are recorded in {clusters}, which cannot be used: {error}; omit --dask-keep."
        raise ConfigurationError(msg) from error
    notes = [] if up else [note for path, record in others if (note := _why_not(path, record, asked))]
    kept = Kept(name, os.fspath(clusters / name), asked, options, options.keep_s) if up or options.keep_s else None
    return kept, notes


def _why_not(where: Path, record: directory.Record | None, asked: Asked) -> str:
    """Why a cluster that is up is not used; empty: it is only just coming up, and nothing is known of it."""
    if record is None:
        found = "was brought up by another version of the plugin" if directory.of_another_version(where) else ""
    else:
        found = f"differs in {'; '.join(differences(record.asked, asked)[:3])}"
    return found and f"Cluster {where.name} is up and is not used: it {found}."
