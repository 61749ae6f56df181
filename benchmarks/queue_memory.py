"""Memory and dispatch rate with ten thousand queued jobs, against a hundred; jobs are stubs."""

import argparse

from dispatch import stubbed
from harness import heading, row, scratch


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--few", type=int, default=100)
    options.add_argument("--many", type=int, default=10_000)
    options.add_argument("--workers", type=int, default=2)
    chosen = options.parse_args()
    held, rates = {}, {}
    with scratch() as directory:
        for number in (chosen.few, chosen.many):
            timed, spent = stubbed(directory / str(number), number, chosen.workers)
            held[number] = (spent["handover_mb"], spent["driver_mb"])
            # Jobs start while others are still handed over, for which Snakemake needs a core.
            stamps = [stamp for stamp in timed.stamps() if stamp > spent["handed_over"]][: chosen.few]
            rates[number] = (len(stamps) - 1) / (stamps[-1] - stamps[0])
    heading(f"{chosen.many} queued jobs against {chosen.few}")
    own, driver = (many - few for few, many in zip(held[chosen.few], held[chosen.many], strict=True))
    row("in Snakemake, by handing over", own, "MB more")
    row("in the driver, at most", driver, "MB more")
    row("together", own + driver, "MB more", aim="at most 50")
    few, many = rates[chosen.few], rates[chosen.many]
    row(
        f"{chosen.few} jobs, once all were handed over",
        many,
        "jobs/s",
        many / few,
        "not below 1",
        f"{chosen.few} queued",
    )


if __name__ == "__main__":
    main()
