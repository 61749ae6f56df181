"""What is private to Snakemake and to Dask, and used all the same, since there is no public way.

Everything else in this package uses what `snakemake.api`, the `snakemake_interface_*` packages and Dask's documentation
declare. Here each private name is declared once (`declared.Private`), with what is lost where it is gone, and is used
by a function whose name says what it gives. `checks` looks for all of them before a run starts anything.
What upstream could offer instead stands in docs/upstream.md.
"""
