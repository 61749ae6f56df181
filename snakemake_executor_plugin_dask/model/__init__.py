"""What all parts speak of: jobs, requests, pools, checked settings, messages, units. Imports nothing of the plugin."""
