"""This machine: a process for each device."""
