"""What the workflow needs to know before it runs: config, index of scans, code dependencies, resources."""
