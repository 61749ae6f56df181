"""What the plugin does with batch systems: their answers, scripts, refusals and reasons, the record of allocations."""
