"""Training objectives: pure functions, one loss per file."""
