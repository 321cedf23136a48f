"""Definitions of the container image."""
