"""Every way to start work: the command line, this machine, a cluster."""
