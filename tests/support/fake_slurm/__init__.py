"""A stand-in for Slurm: its commands, and jobs that really run, as processes of this machine.

    site.json    the kind of site: see `Site` in site.py
    bin/         sbatch, squeue, scontrol, scancel, sacct, sinfo, sacctmgr, srun: each asks the server
    server       one process that holds all jobs (server.py); it ends, with every process of every job, when its
                 standard input ends, and therefore with the test, however that ends

Every run of tests/cluster/test_fake_slurm.py compares what it says and does with the real Slurm (22.05). It has one
host: jobs get node names, but processes of all "nodes" share this machine's process table, /tmp and host name.
"""

from fake_slurm.control import FakeSlurm
from fake_slurm.site import Site

__all__ = ["FakeSlurm", "Site"]
