"""Clusters that stay for further runs: where they are written down, how one is recognised, and how a run gets to it."""
