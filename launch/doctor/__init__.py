"""Examinations of a machine, a cluster and its image."""
