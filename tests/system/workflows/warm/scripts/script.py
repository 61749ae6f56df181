import sys
print("JOB: script", snakemake.params.word, snakemake.threads, snakemake.resources.mem_mb, snakemake.rule)
with open(snakemake.output[0], "w") as f:
    f.write(open(snakemake.input[0]).read() + snakemake.config["word"])
