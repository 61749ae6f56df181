"""One part of the points: each belongs to one of four clouds. The same numbers in each run."""

import numpy as np

CLOUDS = np.array([[-2.0, -1.5], [2.0, -2.0], [1.5, 2.0], [-1.8, 1.6]])

random = np.random.default_rng(int(snakemake.wildcards.part))
cloud = random.integers(len(CLOUDS), size=snakemake.params.points)
np.save(snakemake.output[0], CLOUDS[cloud] + random.normal(scale=0.6, size=(len(cloud), 2)))
