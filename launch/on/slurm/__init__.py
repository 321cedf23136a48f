"""A Slurm cluster: stages are submitted all at once and done by jobs."""
