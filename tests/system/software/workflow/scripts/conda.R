writeLines(c(system("align", intern = TRUE), snakemake@rule), snakemake@output[[1]])
