import os
import sys

import align

with open(snakemake.output[0], "w") as file:
    print(align.VERSION, snakemake.params.given, sys.prefix == os.environ["CONDA_PREFIX"], file=file)
