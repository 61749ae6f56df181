import json

with open(snakemake.output[0], "w", encoding="utf-8") as out:
    json.dump([snakemake.wildcards.value, snakemake.input[0], str(snakemake.output)], out)
