"""What a job costs in a run of few jobs and in runs of many: CPU time and memory of each process; jobs are stubs."""

import argparse

from census import ROLES, Census
from dispatch import stubbed
from harness import heading, row, scratch


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, nargs="+", default=[2_000, 20_000, 100_000], help="the fewest first")
    options.add_argument("--workers", type=int, default=2, help="of all cores each")
    chosen = options.parse_args()
    few = chosen.jobs[0]
    cost: dict[int, dict[str, float]] = {}
    most_kb: dict[int, dict[str, float]] = {}
    for number in chosen.jobs:
        with scratch() as directory:
            with Census() as census:
                timed, _ = stubbed(directory, number, chosen.workers)
            stamps = timed.stamps()
        spent = census.by_role()
        cost[number] = {role: spent[role].cpu_s / number * 1e3 for role in ROLES.values()}
        most_kb[number] = {role: spent[role].most_kb for role in ("Snakemake", "driver")}
        heading(f"{number:,} jobs whose process is a stub, {chosen.workers} workers")
        row("from the command to the first job", stamps[0] - timed.began, "s")
        row("from the first to the last job", (stamps[-1] - stamps[0]) / number * 1e3, "ms a job")
        row("from the last job to the end", timed.began + timed.wall_s - stamps[-1], "s")
        for role, value in cost[number].items():
            row(f"CPU of {role}", value, "ms a job", value / cost[few][role], to=f"{few:,} jobs")
        if number != few:
            for role, held in most_kb[number].items():
                row(f"memory of {role}", (held - most_kb[few][role]) / (number - few), "kB a job")


if __name__ == "__main__":
    main()
