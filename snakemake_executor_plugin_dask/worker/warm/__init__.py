"""The process that has read the workflow, and forks a child for each job. Imports Snakemake."""
