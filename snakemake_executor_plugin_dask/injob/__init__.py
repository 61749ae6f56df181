"""What runs in a job's own Python, which need not have this package: files by themselves, which import none of it."""
