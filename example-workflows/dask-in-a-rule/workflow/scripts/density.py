"""How many points lie in each cell of a grid: each part is counted where it was read, and the counts are added up."""

import dask
import numpy as np
from dask.distributed import Client


@dask.delayed
def count(path, bins):
    """The points of one part in each cell."""
    points = np.load(path)
    return np.histogram2d(points[:, 0], points[:, 1], bins=bins, range=[[-4, 4], [-4, 4]])[0]


if __name__ == "__main__":
    with Client():
        counts = [count(path, snakemake.params.bins) for path in snakemake.input]
        np.save(snakemake.output[0], dask.delayed(sum)(counts).compute())
