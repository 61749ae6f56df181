open(snakemake.output[0], "w").write("partial")
raise RuntimeError("from the script")
