"""What a run will need before it is started: memory per GPU and hours, by arithmetic that can be read."""
