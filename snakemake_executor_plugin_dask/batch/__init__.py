"""What is known of batch systems: their commands, directives, refusals and reasons, and the record of allocations."""
