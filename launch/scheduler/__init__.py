"""The scheduler of a cluster, which is Slurm: what was handed to it, what it says, and how it is asked."""
