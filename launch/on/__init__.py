"""Places where units are done: the values of `--on`."""
