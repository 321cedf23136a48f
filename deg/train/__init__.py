"""Training: data, tasks, losses, callbacks, and the phase that puts them together."""
