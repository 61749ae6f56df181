#!/usr/bin/env bash
echo "${snakemake_input[0]} ${snakemake_params[word]} ${snakemake[rule]} ${snakemake[threads]}" > "${snakemake_output[0]}"
