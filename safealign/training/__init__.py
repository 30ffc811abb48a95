"""Training: TRL's trainers extended through their hooks."""
