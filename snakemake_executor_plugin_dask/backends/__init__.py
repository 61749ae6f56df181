"""One small adapter for each way to bring workers up."""
