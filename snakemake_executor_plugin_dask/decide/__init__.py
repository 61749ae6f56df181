"""The decisions: which pool, which worker, how many, why not yet. Pure; clocks are passed in."""
