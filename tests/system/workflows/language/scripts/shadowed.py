with open("litter.txt", "w") as litter:
    litter.write("x")
with open(snakemake.output[0], "w") as out:
    out.write(open(snakemake.input[0]).read())
