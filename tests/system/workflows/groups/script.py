with open(snakemake.output[0], "w") as out:
    print(snakemake.rule, snakemake.threads, file=out)
