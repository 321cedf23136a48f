"""One video, frame by number: how it is stored, decoded and, in a process of its own, survived."""
