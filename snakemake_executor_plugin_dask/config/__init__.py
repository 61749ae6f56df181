"""From what a user wrote to checked options: settings, pools files, Dask's configuration."""
