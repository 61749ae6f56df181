writeLines(paste(sum(unlist(snakemake@params[["numbers"]])), snakemake@threads), snakemake@output[[1]])
