"""The head of a cluster that stays: one process that holds it, and serves one run or several."""
