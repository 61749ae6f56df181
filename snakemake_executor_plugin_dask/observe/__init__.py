"""What a run tells: event log, lines and tables, report, dashboard. Imports nothing by itself."""
