"""A SLURM cluster: launches, jobs, and what the scheduler says of them."""
