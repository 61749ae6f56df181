import os
import sys

import helper

print("to the log's stderr", file=sys.stderr)
with open(snakemake.output[0], "w", encoding="utf-8") as out:
    print(snakemake.input.first, list(snakemake.input.others), snakemake.params.mapping, snakemake.params.path, file=out)
    print(snakemake.threads, snakemake.resources.mem_mb, snakemake.rule, snakemake.wildcards, file=out)
    print(snakemake.config["greeting"], snakemake.config["nested"], snakemake.scriptdir == os.path.dirname(__file__) or "", file=out)
    print(os.getcwd() == os.environ["PWD"] or os.getcwd(), helper.VALUE, file=out)
with open(snakemake.log[0], "w", encoding="utf-8") as log:
    print("logged", file=log)
