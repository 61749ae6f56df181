"""What all parts speak of: jobs, requests, pools, settings once checked, messages, units, errors. Imports nothing of the plugin."""
