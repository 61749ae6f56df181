with open(snakemake.output[0], "w") as out:
    print(snakemake.config, snakemake.rule, file=out)
