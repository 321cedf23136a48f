"""What learns: losses now; tasks, data and callbacks with training."""
