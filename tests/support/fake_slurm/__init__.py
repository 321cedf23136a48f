"""A stand-in for Slurm: the commands that are typed, and jobs that really run, as processes of this machine.

    site.json    what kind of site it is: see `Site` in site.py
    bin/         sbatch, squeue, scontrol, scancel, sacct, sinfo, sacctmgr, srun: each asks the server
    server       one process that holds all jobs (server.py); it ends, with every process of every job, when its
                 standard input ends, and so with the test, however that ends

What it says and does was compared with Slurm 22.05 and is, on every run of tests/cluster/test_fake_slurm.py. It has one
host only: jobs get node names, and processes of all "nodes" share this machine's process table, /tmp and host name.
"""

from fake_slurm.control import FakeSlurm
from fake_slurm.site import Site

__all__ = ["FakeSlurm", "Site"]
