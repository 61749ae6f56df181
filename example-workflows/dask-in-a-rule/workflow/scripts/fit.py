"""Where the clouds are: k-means. The points stay in the workers' memory, and each step goes over all of them."""

import json

import numpy as np
from dask.distributed import Client


def step(points, centres):
    """Of one part: the sum and the number of the points nearest to each centre."""
    nearest = ((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2).argmin(axis=1)
    sums = np.array([points[nearest == centre].sum(axis=0) for centre in range(len(centres))])
    return sums, np.bincount(nearest, minlength=len(centres))


if __name__ == "__main__":
    with Client() as client:
        parts = client.map(np.load, snakemake.input)
        # One centre in each quarter of the plane, to begin with.
        centres = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        for _ in range(snakemake.params.steps):
            sums, numbers = zip(*client.gather(client.map(step, parts, centres=centres)), strict=True)
            centres = sum(sums) / np.maximum(sum(numbers), 1)[:, None]
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
    with open(snakemake.output[0], "w", encoding="utf-8") as file:
        json.dump({"centres": centres.round(3).tolist(), "points": int(sum(numbers).sum()), "workers": workers}, file)
