"""The scheduler of a cluster, which is Slurm: what was submitted to it, how it is asked, and what it answers."""
