"""A Slurm cluster: stages submitted all at once, and done by jobs."""
